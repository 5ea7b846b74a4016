package rtnl

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// AwaitOtherLink waits until the socket's network namespace has an interface that is up,
// besides lo and the one of that name. It subscribes the socket, which nobody else may
// use any more, to RTNLGRP_LINK, and sleeps between the kernel's messages. os.ErrClosed
// when stop becomes readable or its other end is closed; both files must stay open until
// it returns.
//
// Fallback tunnels, which the kernel makes in new namespaces (tunl0, sit0), are down.
func AwaitOtherLink(route, stop *os.File, name string) error {
	err := controlled(route, func(fd int) error {
		return controlled(stop, func(stop int) error { return awaitOtherLink(fd, stop, name) })
	})
	if err != nil {
		return fmt.Errorf("wait for another interface than %s: %w", name, err)
	}
	return nil
}

// controlled keeps the file open while it is used by its number.
func controlled(f *os.File, use func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var uerr error
	if err := rc.Control(func(fd uintptr) { uerr = use(int(fd)) }); err != nil {
		return err
	}
	return uerr
}

func awaitOtherLink(fd, stop int, name string) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK); err != nil {
		return os.NewSyscallError("setsockopt NETLINK_ADD_MEMBERSHIP", err)
	}
	// What is there already; the subscription comes first, so that nothing is missed in
	// between.
	w := linkWatch{name: name, lost: true}
	buf := make([]byte, answerSize)
	for {
		if err := w.ask(fd); err != nil {
			return err
		}
		if err := readable(fd, stop); err != nil {
			return err
		}
		n, err := receive(fd, buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // netlink(7): messages have been dropped
			w.lost = true
			continue
		case err != nil:
			return err
		}
		if found, err := w.look(buf[:n]); found || err != nil {
			return err
		}
	}
}

// readable waits for a message, or the end of the waiting.
func readable(fd, stop int) error {
	for {
		polls := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		_, err := unix.Poll(polls, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case polls[1].Revents != 0:
			return os.ErrClosed
		default:
			return nil
		}
	}
}

// linkWatch looks for an interface in messages about them.
type linkWatch struct {
	name string
	lost bool // messages are missing: all interfaces have to be asked for
	busy bool // they are being told, and the kernel tells one asker at a time (EBUSY)
}

// ask asks for all interfaces, if it is time to.
func (w *linkWatch) ask(fd int) error {
	if !w.lost || w.busy {
		return nil
	}
	w.lost, w.busy = false, true
	m := newMessage(unix.RTM_GETLINK, unix.NLM_F_DUMP, linkHeader(0, 0, 0))
	return os.NewSyscallError("sendto", send(fd, m.finish(sequence.Add(1))))
}

// look reads one datagram: parts of an answer, which end with NLMSG_DONE, or events.
func (w *linkWatch) look(datagram []byte) (found bool, err error) {
	replies, err := splitReplies(datagram)
	if err != nil {
		return false, err
	}
	for _, r := range replies {
		switch r.kind {
		case unix.RTM_NEWLINK:
			if l, err := parseLink(r.body); err != nil || w.isOther(l) {
				return err == nil, err
			}
		case unix.NLMSG_DONE:
			w.busy = false
		case unix.NLMSG_ERROR:
			if errno, text, err := ackError(r); err != nil || errno != 0 {
				return false, errors.Join(err, &Error{Op: "list interfaces", Errno: errno, Text: text})
			}
		}
	}
	return false, nil
}

func (w *linkWatch) isOther(l link) bool {
	return l.flags&unix.IFF_UP != 0 && l.flags&unix.IFF_LOOPBACK == 0 && l.name != w.name
}
