package join

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/internal/rawfork"
	"github.com/postern-net/postern/userns/rtnl"
)

const (
	// SocketsPerMessage is how many sockets SendSockets puts into one message. The
	// kernel allows 253 (SCM_MAX_FD, unix(7)), but counts descriptors that nobody
	// has received yet against our own limit of open ones (RLIMIT_NOFILE, else
	// ETOOMANYREFS), and a receiver that lacks room for some loses all of a message.
	SocketsPerMessage = fdpass.MaxFiles

	// socketsPerVisit is how many one child makes. It holds all of them until it
	// ends, beside copies of our own descriptors; a limit of 1024 has to do.
	socketsPerVisit = 4 * SocketsPerMessage
)

// socketOption is one setsockopt(2) with an int; what is for errors.
type socketOption struct {
	what               string
	level, name, value int
}

// socketPlan is how a kind of socket is made.
type socketPlan struct {
	domain, kind int
	options      []socketOption
}

// planSocket returns the plan of a transparent, marked socket.
func planSocket(kind handoff.SocketKind) (socketPlan, error) {
	mark := rtnl.PublishedMark
	if kind == handoff.SocketExpressUDP4 || kind == handoff.SocketExpressUDP6 {
		mark = rtnl.ExpressMark
	}
	p := socketPlan{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, []socketOption{
		// The same client may be in TIME_WAIT, or connected to another port of ours; the
		// same remote may be that of another flow.
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, mark},
	}}
	if kind != handoff.SocketTCP4 && kind != handoff.SocketTCP6 {
		p.kind = unix.SOCK_DGRAM | unix.SOCK_NONBLOCK
	}
	switch kind {
	case handoff.SocketTCP4, handoff.SocketUDP4, handoff.SocketExpressUDP4:
		p.options = append(p.options, socketOption{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1})
	case handoff.SocketTCP6, handoff.SocketUDP6, handoff.SocketExpressUDP6:
		p.domain = unix.AF_INET6
		p.options = append(p.options,
			socketOption{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
			socketOption{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	default:
		return socketPlan{}, fmt.Errorf("make sockets of kind %d: %w", kind, unix.EINVAL)
	}
	return p, nil
}

// SendSockets makes n sockets in the target's network namespace, ready to be bound
// to a client's address and connected to a server: transparent, marked, nonblocking,
// close-on-exec, reusing addresses, for IPv6 that family only. The mark is
// rtnl.PublishedMark, and PreparePublishing makes them useful; for the express path's
// kinds it is rtnl.ExpressMark, and package express does. They are sent over to, a
// SOCK_SEQPACKET socket whose other end is another process's, in messages of up to
// SocketsPerMessage with the kind as their one byte of body. No descriptor of them
// stays with us.
//
// It does not wait for the receiver longer than a third of a second a message: then
// the error is EAGAIN, or ETOOMANYREFS if too many descriptors of this user's are on
// their way. EPIPE or ECONNRESET when the other end is closed, EAFNOSUPPORT when the
// kernel lacks the family. On an error some messages may have been sent.
func (t *Target) SendSockets(to *os.File, kind handoff.SocketKind, n int) error {
	plan, err := planSocket(kind)
	if err != nil {
		return err
	}
	rc, err := to.SyscallConn()
	if err != nil {
		return fmt.Errorf("send %s sockets of %s: %w", kind, t.name, err)
	}
	for n > 0 && err == nil {
		batch := min(n, socketsPerVisit)
		n -= batch
		// Within Control, the number stays this socket's when another goroutine
		// closes it.
		if cerr := rc.Control(func(fd uintptr) { err = t.sendBatch(int(fd), kind, plan, batch) }); cerr != nil {
			return fmt.Errorf("send %s sockets of %s: %w", kind, t.name, os.ErrClosed) // its only failure
		}
	}
	return err
}

// sendBatch is one visit that sends n sockets.
func (t *Target) sendBatch(to int, kind handoff.SocketKind, plan socketPlan, n int) error {
	s := &rawfork.Script{}
	t.enter(s)
	fd := s.NewReg()
	for n > 0 {
		batch := min(n, SocketsPerMessage)
		n -= batch
		message := rawfork.NewDescriptors(batch)
		for range batch {
			makeSocket(s, kind.String(), plan, fd, message.Next())
		}
		s.SendMessage("send sockets", rawfork.Int(to), message.Message(s, byte(kind)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	_, err := t.perform(s)
	return err
}

// makeSocket leaves a new socket in the register and, if poke is not nil, there.
func makeSocket(s *rawfork.Script, name string, p socketPlan, fd rawfork.Reg, poke *int32) {
	s.Add(rawfork.Step{
		What: "make a " + name + " socket", Nr: unix.SYS_SOCKET, Store: fd, Poke: poke,
		Args: [6]rawfork.Arg{rawfork.Int(p.domain), rawfork.Int(p.kind | unix.SOCK_CLOEXEC), rawfork.Int(0)},
	})
	for _, o := range p.options {
		value := int32(o.value)
		s.Call("set "+o.what+" on a "+name+" socket", unix.SYS_SETSOCKOPT,
			fd.Arg(), rawfork.Int(o.level), rawfork.Int(o.name), rawfork.Pin(s, &value), rawfork.Int(4))
	}
}
