package rtnl

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// answerWait bounds the wait for an answer, in milliseconds. The kernel answers a
// request before the send returns; only a dump is continued later.
const answerWait = 5000

// answerSize is the size of the receive buffer; the kernel's own limit on one
// datagram is 32 KiB (netlink_recvmsg).
const answerSize = 32 << 10

// sequence numbers requests, so that an answer to an older one is recognized.
var sequence atomic.Uint32

// Error is an operation that failed.
type Error struct {
	Op    string     // what was attempted, on what
	Errno unix.Errno // why
	Text  string     // the kernel's own words, often empty
}

// Error is one line.
func (e *Error) Error() string {
	s := e.Op + ": " + e.Errno.Error()
	if e.Text != "" {
		s += " (" + e.Text + ")"
	}
	return s
}

// Unwrap gives the errno, for errors.Is.
func (e *Error) Unwrap() error { return e.Errno }

// exchange sends one request and waits for its acknowledgment; data gets the
// messages before that. The descriptor's blocking mode does not matter.
func exchange(route *os.File, op string, m *message, data func(reply)) error {
	if route == nil {
		return fmt.Errorf("%s: no netlink socket: %w", op, os.ErrInvalid)
	}
	rc, err := route.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var xerr error
	if err := rc.Control(func(fd uintptr) { xerr = exchangeFD(int(fd), op, m, data) }); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return xerr
}

func exchangeFD(fd int, op string, m *message, data func(reply)) error {
	seq := sequence.Add(1)
	explainErrors(fd)
	if err := send(fd, m.finish(seq)); err != nil {
		return fmt.Errorf("%s: send the request: %w", op, err)
	}
	buf := make([]byte, answerSize)
	for {
		n, err := receive(fd, buf)
		if err != nil {
			return fmt.Errorf("%s: wait for the answer: %w", op, err)
		}
		done, err := answer(buf[:n], seq, op, data)
		if done || err != nil {
			return err
		}
	}
}

// explainErrors asks for the kernel's own words and for answers that do not repeat the
// request. That only improves error texts; a kernel without the options is fine.
func explainErrors(fd int) {
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
}

// send sends one datagram to the kernel.
func send(fd int, b []byte) error {
	for {
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != unix.EINTR {
			return err
		}
	}
}

// answer looks at one datagram; done when it holds the acknowledgment.
func answer(b []byte, seq uint32, op string, data func(reply)) (done bool, err error) {
	replies, err := splitReplies(b)
	if err != nil {
		return true, fmt.Errorf("%s: %w", op, err)
	}
	for _, r := range replies {
		switch {
		case r.seq != seq:
			// Left over from a request whose answer was not waited for.
		case r.kind == unix.NLMSG_ERROR:
			errno, text, err := ackError(r)
			if err != nil {
				return true, fmt.Errorf("%s: %w", op, err)
			}
			if errno != 0 {
				return true, &Error{Op: op, Errno: errno, Text: text}
			}
			return true, nil
		case r.kind == unix.NLMSG_DONE:
			return true, dumpError(r, op)
		case data != nil:
			data(r)
		}
	}
	return false, nil
}

// dumpError is the error that a dump ended with, nil if it is complete: an int, less
// than 0 for an errno, that some kernels leave out.
func dumpError(r reply, op string) error {
	if len(r.body) < 4 {
		return nil
	}
	if code := int32(host.Uint32(r.body)); code < 0 {
		return &Error{Op: op, Errno: unix.Errno(-code)}
	}
	return nil
}

// receive waits for one datagram from the kernel.
func receive(fd int, buf []byte) (int, error) {
	for {
		n, flags, from, err := recvfrom(fd, buf)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := await(fd); err != nil {
				return 0, err
			}
		case err != nil:
			return 0, err
		case flags&unix.MSG_TRUNC != 0:
			return 0, fmt.Errorf("more than %d bytes: %w", len(buf), errMalformed)
		case from.Pid != 0:
			// Not the kernel's: another process may send to a netlink socket.
		default:
			return n, nil
		}
	}
}

func recvfrom(fd int, buf []byte) (n, flags int, from unix.SockaddrNetlink, err error) {
	n, _, flags, sa, err := unix.Recvmsg(fd, buf, nil, unix.MSG_DONTWAIT)
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		from = *nl
	}
	return n, flags, from, err
}

// await waits until there is something to receive.
func await(fd int) error {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, answerWait)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return err
	case n == 0:
		return os.ErrDeadlineExceeded
	}
	return nil
}
