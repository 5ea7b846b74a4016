// Package term is the part of job control that a wrapper between a shell and
// a command has to play (setpgid(2), tty_ioctl(4), signal(7)).
//
// The command gets a process group of its own, so that a signal sent to it does
// not hit us. While it is the terminal's foreground group, Ctrl-C, Ctrl-Z and
// window changes reach it straight from the kernel. The rules:
//
//   - At the start the command's group becomes the foreground group if ours is
//     and both standard input and output are terminals. In a pipeline
//     (postern run -- make | less) it does not: the pager needs the terminal, and
//     the signals that the terminal sends to our group are passed on to the
//     command's group instead.
//   - A command that is stopped by SIGTTIN or SIGTTOU while our group is the
//     foreground group is given the terminal and continued: it asked for it.
//   - Any other stop of the command takes the terminal back and stops our own
//     group the same way, so that the shell sees its job stop. Where nobody
//     could continue us (an orphaned process group, setpgid(2)), the kernel
//     ignores that stop and the command goes on.
//   - On SIGCONT the terminal is handed over again if the shell put our group
//     in the foreground, then the command is continued.
//   - At the end the terminal is taken back. If an interrupt from the terminal
//     killed the command, our group gets it too, as it would have without us: a
//     shell script that runs postern in a loop ends on Ctrl-C.
package term

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Terminal is a controlling terminal. The nil Terminal stands for none: its
// Foreground is never ours and SetForeground does nothing.
type Terminal struct {
	file *os.File
}

// Open returns the controlling terminal, nil if the process has none.
func Open() *Terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return openStandard()
	}
	return New(os.NewFile(uintptr(fd), "/dev/tty"))
}

// openStandard finds the terminal where /dev/tty is missing (a bare container):
// one of the standard descriptors may be it.
func openStandard() *Terminal {
	for fd := range 3 {
		if _, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil {
			continue
		}
		if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			return New(os.NewFile(uintptr(dup), "terminal"))
		}
	}
	return nil
}

// New takes over a descriptor of the terminal, nil for none.
func New(f *os.File) *Terminal {
	if f == nil {
		return nil
	}
	return &Terminal{file: f}
}

// File returns the terminal's descriptor to pass on, nil if there is none.
func (t *Terminal) File() *os.File {
	if t == nil {
		return nil
	}
	return t.file
}

// Ours reports whether the caller's process group is the foreground group.
func (t *Terminal) Ours() bool {
	if t == nil {
		return false
	}
	pgrp, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

// SetForeground makes pgrp the foreground group. Callers outside the present
// foreground group may do so only while SIGTTOU is blocked, so it is blocked on
// this thread meanwhile.
func (t *Terminal) SetForeground(pgrp int) error {
	if t == nil {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, old unix.Sigset_t
	block.Val[0] = 1 << (unix.SIGTTOU - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old); err != nil {
		return fmt.Errorf("block SIGTTOU: %w", err)
	}
	err := unix.IoctlSetPointerInt(int(t.file.Fd()), unix.TIOCSPGRP, pgrp)
	if restore := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); restore != nil {
		return fmt.Errorf("unblock SIGTTOU: %w", restore)
	}
	if err != nil {
		return fmt.Errorf("make process group %d the terminal's foreground group: %w", pgrp, err)
	}
	return nil
}

// Close closes the terminal's descriptor.
func (t *Terminal) Close() error {
	if t == nil {
		return nil
	}
	return t.file.Close()
}

// Is reports whether fd is a terminal.
func Is(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// Controlled reports whether this process has a controlling terminal.
func Controlled() bool {
	t := Open()
	defer t.Close()
	return t != nil
}
