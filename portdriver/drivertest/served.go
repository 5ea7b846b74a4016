package drivertest

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/join"
)

// served is drivers behind a registry, as the supervisor and the engine have them,
// in one process.
type served struct {
	registry *portdriver.Registry
	target   *join.Target
	choose   func(portdriver.Listener) portdriver.Driver
	all      []portdriver.Driver
	end      func()
}

// Serve makes a Driver of portdriver's: choose says which one serves a listener, all
// are those that it chooses from, and end, called when they are closed, takes down
// what they use.
func Serve(w World, choose func(portdriver.Listener) portdriver.Driver, all []portdriver.Driver, end func()) (Driver, error) {
	target, err := join.OpenPID(w.ContainerPID)
	if err != nil {
		return nil, err
	}
	s := &served{target: target, choose: choose, all: all, end: end}
	s.registry = portdriver.New(portdriver.Config{Backend: s, ContainerListener: s.listenInside})
	return s, nil
}

// Publish puts a rule in force.
func (s *served) Publish(spec portdriver.Spec) (int, error) {
	r, err := s.registry.Add(spec)
	return r.ID, err
}

// Unpublish ends a rule.
func (s *served) Unpublish(rule int) error { return s.registry.Remove(rule) }

// Close ends everything.
func (s *served) Close() error {
	s.registry.Close()
	for _, d := range s.all {
		d.Close()
	}
	s.end()
	return s.target.Close()
}

// Open implements portdriver.Backend: each driver gets descriptors of its own.
func (s *served) Open(r portdriver.Rule) error {
	var failed error
	for _, l := range r.Listeners {
		fd, err := unix.FcntlInt(l.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return errors.Join(failed, err)
		}
		l.File = os.NewFile(uintptr(fd), l.File.Name())
		failed = errors.Join(failed, s.choose(l).Open(l))
	}
	return failed
}

// Shut implements portdriver.Backend.
func (s *served) Shut(rule int) {
	for _, d := range s.all {
		d.Shut(rule)
	}
}

func (s *served) listenInside(side portdriver.Side) (*os.File, error) {
	if side.Path != "" {
		return nil, fmt.Errorf("listen on %s in the container: %w", side.Path, errors.ErrUnsupported)
	}
	kind := handoff.SocketTCP4
	if side.Addr.Is6() {
		kind = handoff.SocketTCP6
	}
	return s.target.Listen(kind, netip.AddrPortFrom(side.Addr, side.Port))
}

// Stock returns a stock of sockets that are made in the container's namespaces, and
// what ends it.
func (w World) Stock() (_ *stock.Stock, end func(), _ error) {
	target, err := join.OpenPID(w.ContainerPID)
	if err != nil {
		return nil, nil, err
	}
	if err := target.PreparePublishing(); err != nil {
		return nil, nil, err
	}
	to, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, nil, err
	}
	from, err := fdpass.NewConn(theirs)
	if err != nil {
		return nil, nil, err
	}
	s := stock.New(func(kind handoff.SocketKind, n int) {
		if err := target.SendSockets(to, kind, n); err != nil {
			fmt.Fprintln(os.Stderr, "drivertest:", err)
		}
	}, stockLevel)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Receive(from, slog.New(slog.DiscardHandler))
	}()
	return s, func() {
		s.Close()
		from.Close()
		<-done
		to.Close()
		target.Close()
	}, nil
}

// stockLevel is how many sockets of a kind are kept at most.
const stockLevel = 64

// Stocked is how many descriptors a driver with a Stock may keep for later: a full
// shelf of each kind.
const Stocked = stockLevel * handoff.NumSocketKinds
