//go:build cgo && (amd64 || arm64)

package engineproc

import "golang.org/x/sys/unix"

// glibc is what glibc and the race detector use besides. What is released is built
// without either.
var glibc = []uint32{
	unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST, unix.SYS_BRK, unix.SYS_MINCORE, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_GETTIMEOFDAY,
}
