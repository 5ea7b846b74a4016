package rawfork

import (
	"runtime"
	"syscall"
	"unsafe"
)

// The runtime's hooks around a fork. They are on Go's list of names that outside
// packages may link to (runtime/proc.go); the empty assembly file of this package
// lets the bodiless declarations compile.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// op is a Step as the child reads it: plain values, jumps as indices.
type op struct {
	nr      uintptr
	value   [6]uintptr
	reg     [6]Reg
	store   Reg
	poke    *int32
	least   uintptr
	ignore  [3]syscall.Errno
	failed  int // -1: go on with the next
	nonZero int // -1: go on with the next
}

// program is all that the child looks at.
type program struct {
	ops []op
	// flags are clone's, with the signal to send at the end in the low byte.
	flags uintptr
	// pidfd receives the child's pidfd, in the parent's memory.
	pidfd int32
	// control is the child's end of the control socket, parent our own.
	control, parent uintptr
	// report is the message about a failed step: its index, its errno.
	report [2]uint32
}

const (
	// brokenExit is the exit code after a failed step; the report says which.
	brokenExit = 253
	// quiet makes the report's send fail rather than wait or raise SIGPIPE.
	quiet = syscall.MSG_NOSIGNAL | syscall.MSG_DONTWAIT
)

// clone forks; the parent gets the child's pid or an errno, the child interprets
// p and never returns. Whatever is in the loop is explained in the package
// comment: no allocation, no calls but the two that are marked nosplit in their
// own packages, no write of a pointer (a write barrier is a call).
//
//go:noinline
//go:norace
//go:nocheckptr
func clone(p *program) (pid uintptr, errno syscall.Errno) {
	var (
		regs       [registers]uintptr
		a          [6]uintptr
		o          *op
		i, j       int
		r, e       uintptr
		next       int
		tolerated  bool
		stack, ptr uintptr
	)
	ptr = uintptr(unsafe.Pointer(&p.pidfd))
	beforeFork()
	if runtime.GOARCH == "s390x" { // clone(2): the first two arguments trade places
		pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, stack, p.flags, ptr, 0, 0, 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, p.flags, stack, ptr, 0, 0, 0)
	}
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}

	afterForkInChild()
	syscall.RawSyscall6(syscall.SYS_CLOSE, p.parent, 0, 0, 0, 0, 0)
	regs[Control] = p.control
	for i < len(p.ops) {
		o = &p.ops[i]
		for j = 0; j < len(a); j++ {
			a[j] = o.value[j]
			if o.reg[j] != 0 {
				a[j] = regs[o.reg[j]%registers]
			}
		}
		r, _, errno = syscall.RawSyscall6(o.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == syscall.EINTR {
			continue
		}
		next = i + 1
		if errno != 0 {
			tolerated = errno == o.ignore[0] || errno == o.ignore[1] || errno == o.ignore[2]
			if !tolerated {
				break
			}
			if o.failed >= 0 {
				next = o.failed
			}
			i = next
			continue
		}
		if r < o.least {
			errno = syscall.EPIPE
			break
		}
		regs[o.store%registers] = r
		if o.poke != nil {
			*o.poke = int32(r)
		}
		if r != 0 && o.nonZero >= 0 {
			next = o.nonZero
		}
		i = next
	}
	if errno != 0 && i < len(p.ops) {
		p.report[0], p.report[1] = uint32(i), uint32(errno)
		e = brokenExit
		syscall.RawSyscall6(syscall.SYS_SENDTO, p.control, uintptr(unsafe.Pointer(&p.report)), unsafe.Sizeof(p.report), quiet, 0, 0)
	}
	for {
		syscall.RawSyscall6(syscall.SYS_EXIT_GROUP, e, 0, 0, 0, 0, 0)
	}
}
