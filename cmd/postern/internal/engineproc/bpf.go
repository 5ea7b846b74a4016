package engineproc

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A filter is a program for the kernel's BPF machine over struct seccomp_data
// (seccomp(2)). It is made of blocks, each of which either returns or goes on behind
// itself with the call's number in the accumulator.
type filter []unix.SockFilter

// Offsets in struct seccomp_data, which has the arguments as 64-bit numbers. Of one
// that the kernel takes for 32 bits, we look at the half that it looks at: both
// architectures are little-endian.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// loadArg and loadHigh load the lower and the upper half of an argument.
func loadArg(n int) unix.SockFilter  { return load(offsetArgs + 8*uint32(n)) }
func loadHigh(n int) unix.SockFilter { return load(offsetArgs + 8*uint32(n) + 4) }

func and(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

// equal goes on with the next instruction if the accumulator is k, and otherwise
// skips so many.
func equal(k uint32, skip int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: uint8(skip)}
}

// unless skips the next instruction if the accumulator is k.
func unless(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: 1}
}

// atLeast skips so many instructions unless the accumulator is at least k.
func atLeast(k uint32, skip int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: k, Jf: uint8(skip)}
}

// anyOf skips so many instructions unless the accumulator has any bit of mask.
func anyOf(mask uint32, skip int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: mask, Jf: uint8(skip)}
}

// on adds a block for a system call. The body has to return.
func (f *filter) on(call uint32, body ...unix.SockFilter) {
	*f = append(*f, equal(call, len(body)))
	*f = append(*f, body...)
}

// onArg adds a block that allows a call if an argument is one of values, and
// otherwise takes action.
func (f *filter) onArg(call uint32, arg int, action uint32, values ...uint32) {
	body := []unix.SockFilter{loadArg(arg)}
	for _, v := range values {
		body = append(body, equal(v, 1), ret(unix.SECCOMP_RET_ALLOW))
	}
	f.on(call, append(body, ret(action))...)
}

// install puts the filter over all threads of the process, for good. They must have
// no_new_privs set.
func (f filter) install() error {
	program := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	// Before Linux 5.16 a filter turns mitigations on that keep a program from its own
	// secrets by speculation, at a price for each packet. We run nobody's program.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install the system call filter: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("install the system call filter: thread %d has another one", thread)
	}
	return nil
}
