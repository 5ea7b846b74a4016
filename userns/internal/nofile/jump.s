#include "textflag.h"

// func rawSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr)
TEXT ·rawSyscall6(SB),NOSPLIT,$0-80
	JMP	syscall·RawSyscall6(SB)
