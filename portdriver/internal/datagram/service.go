package datagram

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock"
)

// Service serves published UDP ports. New starts its goroutines: one that receives,
// one that passes on in each direction, and one that ends idle flows. Close stops
// them and waits.
type Service struct {
	cfg     Config
	start   time.Time
	now     func() time.Time // time.Now but in tests
	table   *table
	poller  *hostsock.Poller
	janitor *hostsock.Janitor
	in, out *pump

	writer hostsock.Writer // out's

	mu        sync.Mutex // guards the fields below
	closed    bool
	listeners map[*listener]struct{}
}

// New returns a running service without listeners.
func New(c Config) (*Service, error) {
	poller, err := hostsock.NewPoller()
	if err != nil {
		return nil, fmt.Errorf("serve published UDP ports: %w", err)
	}
	c = c.withDefaults()
	s := &Service{
		cfg:       c,
		start:     time.Now(),
		now:       time.Now,
		table:     newTable(c.Max, c.Counters),
		poller:    poller,
		listeners: make(map[*listener]struct{}),
	}
	s.in, s.out = newPump(s.toContainer), newPump(s.toClient)
	s.janitor = hostsock.NewJanitor(func() { s.expire(s.age()) }, c.Idle, c.IdleUnreplied)
	return s, nil
}

// age is the time since the service's start; it is the clock of idle times.
func (s *Service) age() time.Duration { return s.now().Sub(s.start) }

// Open starts to serve a listener of Network udp, whose File it takes over, also
// when it fails.
func (s *Service) Open(l portdriver.Listener) error {
	ln, err := s.adopt(l)
	if err != nil {
		return fmt.Errorf("serve udp %s: %w", l.Bound, err)
	}
	s.cfg.Logger.Debug("serving", slog.Int("rule", l.Rule), slog.Any("udp", l.Bound), slog.Any("target", l.Target))
	if err := s.poller.Add(ln.socket, ln); err != nil {
		s.drop(func(other *listener) bool { return other == ln })
		return fmt.Errorf("serve udp %s: %w", l.Bound, err)
	}
	return nil
}

// Shut ends the service of a rule, and its flows.
func (s *Service) Shut(rule int) {
	s.drop(func(ln *listener) bool { return ln.Rule == rule })
}

// drop ends the listeners for which which says so.
func (s *Service) drop(which func(*listener) bool) {
	s.mu.Lock()
	var gone []*listener
	for ln := range s.listeners {
		if which(ln) {
			delete(s.listeners, ln)
			gone = append(gone, ln)
		}
	}
	s.mu.Unlock()
	for _, ln := range gone {
		ln.socket.Close()
	}
	s.endAll(s.table.shut(gone))
}

// Find returns the flow that the container knows by a route, or nil.
func (s *Service) Find(r portdriver.Route) *Flow { return s.table.byRoute(r) }

// Status returns the number of flows and what was counted.
func (s *Service) Status() portdriver.Status {
	return portdriver.Status{UDP: s.table.len(), Counters: s.cfg.Counters.Snapshot()}
}

// Close ends every flow and waits for all goroutines. A Way that waits must have
// been released before. It may be called again.
func (s *Service) Close() {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	s.in.close()
	s.out.close()
	s.janitor.Close()
	if again {
		return
	}
	_ = s.poller.Close() // of no consequence: nothing is received any more
	s.drop(func(*listener) bool { return true })
}

// expire ends idle flows, at most a quarter of the idle time late.
func (s *Service) expire(age time.Duration) {
	s.endAll(s.table.take(func(f *Flow) bool {
		after := s.cfg.IdleUnreplied
		if f.replied.Load() {
			after = s.cfg.Idle
		}
		return after > 0 && age-time.Duration(f.lastUsed.Load()) >= after
	}))
}

// endAll closes the ways of flows that are out of the table.
func (s *Service) endAll(flows []*Flow) {
	for _, f := range flows {
		f.end()
	}
}
