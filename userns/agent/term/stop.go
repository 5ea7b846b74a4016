package term

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is at least as large as the kernel's struct sigaction on every
// architecture. Its layout differs, but all zero is SIG_DFL without flags on each.
type sigaction [64]byte

// kernelSigset is the size of the kernel's signal set in bytes, of which
// rt_sigaction(2) wants to be told.
const kernelSigset = 8

// StopSelf stops the caller's process group with SIGTSTP, as the terminal does on
// Ctrl-Z. It returns when the process has been continued, or at once where the
// kernel ignores the signal because nobody could continue us (an orphaned process
// group, setpgid(2)).
//
// It must be called on the main thread: that is where the kernel delivers the
// signal, and so where kill(2) returns only afterwards. The signal's action is
// changed behind the back of os/signal, whose Reset leaves Go's handler in place
// for stop signals (runtime, sigdisable), and then put back.
func StopSelf() error {
	var byDefault, old sigaction
	if err := setAction(unix.SIGTSTP, &byDefault, &old); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	killErr := unix.Kill(0, unix.SIGTSTP)
	if err := setAction(unix.SIGTSTP, &old, nil); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if killErr != nil {
		return fmt.Errorf("stop: %w", killErr)
	}
	return nil
}

func setAction(s unix.Signal, act, old *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s),
		uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), kernelSigset, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
