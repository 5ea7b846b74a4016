package engineproc

import "golang.org/x/sys/unix"

const arch = unix.AUDIT_ARCH_X86_64

// What other architectures do not have.
var (
	allowedHere = []uint32{unix.SYS_EPOLL_WAIT, unix.SYS_POLL}
	refusedHere = []uint32{
		unix.SYS_OPEN, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_READLINK, unix.SYS_ACCESS,
	}
	deadlyHere = []uint32{
		unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT,
	}
)
