package rtnl

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Request is one message of a Batch.
type Request struct {
	Op    string // what it attempts, on what: the start of an error's text
	Kind  uint16 // nlmsg_type
	Flags uint16 // nlmsg_flags besides NLM_F_REQUEST and NLM_F_ACK
	Body  []byte // what follows struct nlmsghdr; see AppendAttribute
	// Silent messages are not acknowledged: the begin and end of a batch of
	// nfnetlink. A refusal that names one is about the whole batch.
	Silent bool
	// Ignore lists errnos that do not matter.
	Ignore []unix.Errno
}

// Batch sends all requests at once and waits for their answers: one system call for
// the requests and one for each answer. Over rtnetlink each stands for itself, and
// one that fails does not keep the others from being done; over nfnetlink they are
// one transaction if they begin and end one. The error is the first request's that
// failed, an *Error where the kernel refused it.
//
// The socket is any netlink socket that nobody else uses meanwhile.
func Batch(socket *os.File, list []Request) error {
	requests := make([]request, len(list))
	for i, r := range list {
		m := newMessage(r.Kind, r.Flags, r.Body)
		if r.Silent {
			host.PutUint16(m.b[6:], r.Flags|unix.NLM_F_REQUEST)
		}
		requests[i] = request{op: r.Op, m: m, silent: r.Silent, ignore: r.Ignore}
	}
	return batch(socket, requests)
}

// AppendAttribute appends an attribute, padded to 4 bytes. kind may have the flags
// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
func AppendAttribute(b []byte, kind uint16, value []byte) []byte {
	m := message{b}
	m.pad()
	m.attr(kind, value)
	return m.b
}

// request is a message that is ready but for its sequence number.
type request struct {
	op     string
	m      *message
	silent bool
	ignore []unix.Errno
}

func batch(socket *os.File, list []request) error {
	if len(list) == 0 {
		return nil
	}
	if socket == nil {
		return fmt.Errorf("%s: no netlink socket: %w", list[0].op, os.ErrInvalid)
	}
	rc, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", list[0].op, err)
	}
	var berr error
	if err := rc.Control(func(fd uintptr) { berr = batchFD(int(fd), list) }); err != nil {
		return fmt.Errorf("%s: %w", list[0].op, err)
	}
	return berr
}

func batchFD(fd int, list []request) error {
	explainErrors(fd)
	var all []byte
	waiting := make(map[uint32]request, len(list))
	for _, r := range list {
		seq := sequence.Add(1)
		all = append(all, r.m.finish(seq)...)
		waiting[seq] = r
	}
	if err := send(fd, all); err != nil {
		return fmt.Errorf("%s: send the request: %w", list[0].op, err)
	}
	open := 0
	for _, r := range list {
		if !r.silent {
			open++
		}
	}
	var first batchError
	buf := make([]byte, answerSize)
	for open > 0 {
		n, err := receive(fd, buf)
		if err != nil {
			return fmt.Errorf("%s: wait for the answer: %w", list[0].op, err)
		}
		closed, err := first.answers(buf[:n], waiting)
		if err != nil {
			return fmt.Errorf("%s: %w", list[0].op, err)
		}
		if first.whole {
			break
		}
		open -= closed
	}
	return first.result()
}

// batchError is the refusal that counts: that of the earliest request, or of all.
type batchError struct {
	err   *Error
	seq   uint32
	whole bool
}

// answers looks at one datagram and says how many requests it answers.
func (b *batchError) answers(datagram []byte, waiting map[uint32]request) (closed int, err error) {
	replies, err := splitReplies(datagram)
	if err != nil {
		return 0, err
	}
	for _, r := range replies {
		q, ours := waiting[r.seq]
		if !ours || r.kind != unix.NLMSG_ERROR {
			continue
		}
		errno, text, err := ackError(r)
		if err != nil {
			return closed, err
		}
		if !q.silent {
			delete(waiting, r.seq)
			closed++
		}
		if errno == 0 || slices.Contains(q.ignore, errno) {
			continue
		}
		if b.err == nil || r.seq < b.seq {
			b.err, b.seq = &Error{Op: q.op, Errno: errno, Text: text}, r.seq
		}
		b.whole = b.whole || q.silent
	}
	return closed, nil
}

func (b *batchError) result() error {
	if b.err == nil {
		return nil
	}
	return b.err
}

// Refused reports whether the kernel refused what was asked for, rather than that
// the asking failed.
func Refused(err error) bool {
	_, ok := errors.AsType[*Error](err)
	return ok
}
