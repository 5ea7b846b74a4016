package engineproc

import "golang.org/x/sys/unix"

const arch = unix.AUDIT_ARCH_AARCH64

// What other architectures do not have, or by another name.
var (
	allowedHere = []uint32{}
	refusedHere = []uint32{unix.SYS_FSTATAT}
	deadlyHere  = []uint32{unix.SYS_KEXEC_FILE_LOAD}
)
