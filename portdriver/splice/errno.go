package splice

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// acceptStep is what follows an error of accept4(2).
type acceptStep uint8

const (
	acceptEmpty acceptStep = iota // nobody waits
	acceptNext                    // this one is gone; the next one may be all right
	acceptShort                   // descriptors or memory have run out
	acceptDead                    // the listener does not work, now
)

// afterAccept says what follows. Errors of the network that the new connection
// already had are told by accept4 too (accept(2)).
func afterAccept(errno syscall.Errno) acceptStep {
	switch errno {
	case unix.EAGAIN:
		return acceptEmpty
	case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.EPERM, unix.ENOPROTOOPT, unix.ENETDOWN, unix.ENETUNREACH,
		unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, unix.ETIMEDOUT, unix.ECONNRESET:
		return acceptNext
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
		return acceptShort
	}
	return acceptDead
}

// dialStep is what follows connect(2).
type dialStep uint8

const (
	dialDone    dialStep = iota // connected
	dialPending                 // the server has not answered yet
	dialTaken                   // source and target have a connection already
	dialRefused                 // not this way
)

// afterConnect says what follows. EADDRNOTAVAIL is what connect(2) says of a bound
// socket whose four addresses and ports are in use.
func afterConnect(errno syscall.Errno) dialStep {
	switch errno {
	case 0, unix.EISCONN:
		return dialDone
	case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return dialPending
	case unix.EADDRNOTAVAIL:
		return dialTaken
	}
	return dialRefused
}
