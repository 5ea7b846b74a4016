package supervisor

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/join"
)

// supply makes sockets in the container's network namespace for one engine, as it
// orders them. Its goroutine starts with connect and ends with close.
type supply struct {
	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	wanted  [handoff.NumSocketKinds]int
	closed  bool
	started bool
	wake    chan struct{} // has room for one

	done sync.WaitGroup
}

func newSupply(log *slog.Logger) *supply {
	return &supply{log: log, wake: make(chan struct{}, 1)}
}

// connect starts to serve orders with sockets of the target's network namespace and
// returns the descriptor on which the engine gets them, the caller's to close.
func (s *supply) connect(target *join.Target) (engines *os.File, err error) {
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true
	s.done.Add(1)
	go s.run(target, ours)
	return theirs, nil
}

// order takes an order. A later one for the same kind replaces one that has not
// been looked at: the engine says what it lacks altogether.
func (s *supply) order(kind handoff.SocketKind, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started || s.closed {
		return
	}
	s.wanted[kind] = n
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take returns the present orders, or false when there will be no more.
func (s *supply) take() (wanted [handoff.NumSocketKinds]int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted, s.wanted = s.wanted, [handoff.NumSocketKinds]int{}
	return wanted, !s.closed
}

func (s *supply) run(target *join.Target, to *os.File) {
	defer s.done.Done()
	defer to.Close()
	for range s.wake {
		wanted, ok := s.take()
		if !ok {
			return
		}
		for kind, n := range wanted {
			if n == 0 {
				continue
			}
			switch err := target.SendSockets(to, handoff.SocketKind(kind), n); {
			case err == nil:
			case errors.Is(err, unix.EPIPE):
				return // the engine has ended, and nobody else is served here
			default:
				// The engine asks again after a while.
				s.log.Warn("no sockets of the container's network", "kind", handoff.SocketKind(kind), "cause", err)
			}
		}
	}
}

// close ends the goroutine and waits for it.
func (s *supply) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	s.done.Wait()
}
