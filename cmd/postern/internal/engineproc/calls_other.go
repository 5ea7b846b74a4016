//go:build !amd64 && !arm64

package engineproc

// There is no table of calls for this architecture.
const arch = 0

var allowed, refused, deadly []uint32
