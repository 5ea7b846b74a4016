// Package nofile remembers the soft limit of open files that the process was
// started with.
//
// Go raises its own soft limit to the hard one when package syscall is
// initialised, and os/exec gives children the old limit back; the value it keeps
// is private. A raw fork has to give it back too: programs that close every
// possible descriptor take minutes under a limit of a billion.
//
// The package must be initialised before package syscall. It therefore imports
// nothing but unsafe: Go initialises packages in the order of their dependencies
// and, among those that are ready, of their paths. Where that ever stops being
// true the limit found is the raised one, and Original reports false.
package nofile

import _ "unsafe" // for go:linkname's sake: the assembly file needs it

// limit has the shape of the kernel's struct rlimit64 (prlimit(2)).
type limit struct {
	soft uint64
	hard uint64
}

// original is the limit at start; zero when it could not be read.
var original = read()

// resource is RLIMIT_NOFILE, the same number on every architecture but mips and
// sparc, which Go's number below excludes.
const resource = 7

// rawSyscall6 is syscall.RawSyscall6, reached without importing syscall.
func rawSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr)

// Original gives the limits that the process was started with; false when they
// are unknown or the soft limit was the hard one already.
func Original() (soft, hard uint64, ok bool) {
	return original.soft, original.hard, original.soft < original.hard
}
