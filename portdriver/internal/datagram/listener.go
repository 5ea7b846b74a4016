package datagram

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock"
)

// listener is one socket that clients send to.
type listener struct {
	portdriver.Listener
	service *Service
	socket  *hostsock.Socket
	shut    bool // guarded by table.mu

	// last is the flow of the datagram before, used by the receiving goroutine only.
	last *Flow
}

var _ hostsock.Handler = (*listener)(nil)

// adopt makes a listener of l and enters it.
func (s *Service) adopt(l portdriver.Listener) (*listener, error) {
	if l.File == nil {
		return nil, fmt.Errorf("no socket: %w", os.ErrInvalid)
	}
	defer l.File.Close()
	if l.Network != portdriver.NetUDP || l.Target.Port() == 0 {
		return nil, fmt.Errorf("network %q, target %s: %w", l.Network, l.Target, os.ErrInvalid)
	}
	fd, err := duplicate(l.File)
	if err != nil {
		return nil, err
	}
	socket, err := hostsock.Adopt(fd)
	if err != nil {
		return nil, err
	}
	l.File = nil
	ln := &listener{Listener: l, service: s, socket: socket}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		socket.Close()
		return nil, net.ErrClosed
	}
	s.listeners[ln] = struct{}{}
	return ln, nil
}

// duplicate returns a descriptor of f's socket that is not bound to f's life.
func duplicate(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	own := -1
	if cerr := raw.Control(func(fd uintptr) {
		own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
	}); cerr != nil {
		return -1, cerr
	}
	return own, os.NewSyscallError("fcntl", err)
}

// Report implements hostsock.Handler. A listener has no error queue.
func (ln *listener) Report(hostsock.Report) {}

// Receive implements hostsock.Handler: it passes on what a client sent.
func (ln *listener) Receive(m hostsock.Message) {
	k := key{listener: ln, from: m.From, local: m.Local}
	if m.From.Addr().IsLinkLocalUnicast() || m.Local.IsLinkLocalUnicast() {
		k.zone = m.Interface
	}
	f := ln.last
	if f == nil || f.key != k || f.ended.Load() {
		if f = ln.service.flow(k); f == nil {
			ln.service.lost(m.Payload, m.Segment)
			return
		}
		ln.last = f
	}
	ln.service.in.add(f, m.Payload, m.Segment)
}
