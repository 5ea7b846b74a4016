package admission

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

// A connection is pending until the server has answered. The container's server or
// its root may see to it that none does, so a listener may have a part of all
// pending ones only; and when those are used up by some, every other listener still
// has a few.
const (
	// MaxPendingEach is a listener's part.
	MaxPendingEach = portdriver.MaxPending / 8
	minPendingEach = 4
)

// MayPend reports whether a listener with so many pending connections may accept one
// more when there are so many in all.
func MayPend(each, all int64) bool {
	return each < minPendingEach || each < MaxPendingEach && all < portdriver.MaxPending
}

// OpenFiles is the process's limit of descriptors (RLIMIT_NOFILE, getrlimit(2)). Go
// has raised the soft limit to the hard one at the start.
func OpenFiles() uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 1024 // what every Linux process has unless told otherwise
	}
	return r.Cur
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
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
		return AcceptShort
	}
	return AcceptDead
}
