package splice

import (
	"syscall"

	"golang.org/x/sys/unix"
)

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
