package sockcall

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenFiles is the process's limit of descriptors (RLIMIT_NOFILE, getrlimit(2)). Go
// has raised the soft limit to the hard one at the start.
func OpenFiles() uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 1024 // what every Linux process has unless told otherwise
	}
	return r.Cur
}

// Short reports whether an error means that descriptors or memory have run out.
func Short(errno syscall.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
		return true
	}
	return false
}

// AcceptStep is what follows an error of accept4(2).
type AcceptStep uint8

// The steps.
const (
	AcceptEmpty AcceptStep = iota // nobody waits
	AcceptNext                    // this one is gone; the next one may be all right
	AcceptShort                   // descriptors or memory have run out
	AcceptDead                    // the listener does not work, now
)

// AfterAccept says what follows. Errors of the network that the new connection
// already had are told by accept4 too (accept(2)).
func AfterAccept(errno syscall.Errno) AcceptStep {
	switch errno {
	case unix.EAGAIN:
		return AcceptEmpty
	case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.EPERM, unix.ENOPROTOOPT, unix.ENETDOWN, unix.ENETUNREACH,
		unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, unix.ETIMEDOUT, unix.ECONNRESET:
		return AcceptNext
	}
	if Short(errno) {
		return AcceptShort
	}
	return AcceptDead
}
