//go:build !cgo && (amd64 || arm64)

package engineproc

var glibc []uint32
