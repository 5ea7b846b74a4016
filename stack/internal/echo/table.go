package echo

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
)

// settled is the age of an identifier's last request after which it may give way.
const settled = time.Second

// key names a session: an address of the container and an identifier.
type key struct {
	from netip.Addr
	id   uint16
}

// Table is the set of sessions. New starts its two goroutines, the poller's and
// the one that ends idle sessions; Close stops both and waits.
type Table struct {
	cfg     Config
	now     func() time.Time // time.Now but in tests
	poller  *hostsock.Poller
	janitor *hostsock.Janitor

	// The reader's, used by Handle only.
	writer hostsock.Writer
	msg    []byte

	explain sync.Once // the one log line about ping_group_range

	mu       sync.Mutex // guards the fields below; no system call is made under it
	closed   bool
	sessions map[key]*session // bounded by flow.MaxEcho
}

// New returns a running table.
func New(c Config) (*Table, error) {
	t := &Table{
		cfg:      c.withDefaults(),
		now:      time.Now,
		sessions: make(map[key]*session),
	}
	var err error
	if t.poller, err = hostsock.NewPoller(); err != nil {
		return nil, fmt.Errorf("start echo: %w", err)
	}
	t.janitor = hostsock.NewJanitor(func() { t.expire(t.now()) }, t.cfg.Idle)
	return t, nil
}

// Close ends every session and waits for the goroutines. Handle may still be
// called and does nothing. A Sender that waits must have been released before.
func (t *Table) Close() error {
	t.mu.Lock()
	again := t.closed
	t.closed = true
	all := t.takeLocked(func(*session) bool { return true })
	t.mu.Unlock()
	t.janitor.Close()
	if again {
		return nil
	}
	err := t.poller.Close()
	for _, s := range all {
		t.end(s)
	}
	return err
}

// expire ends idle sessions, at most a quarter of the idle time late.
func (t *Table) expire(now time.Time) {
	t.mu.Lock()
	idle := t.takeLocked(func(s *session) bool {
		return t.cfg.Idle > 0 && now.Sub(s.used) >= t.cfg.Idle
	})
	t.mu.Unlock()
	for _, s := range idle {
		t.end(s)
	}
}

// takeLocked takes those sessions out of the table for which which says so.
func (t *Table) takeLocked(which func(*session) bool) []*session {
	var taken []*session
	for k, s := range t.sessions {
		if which(s) {
			delete(t.sessions, k)
			taken = append(taken, s)
		}
	}
	return taken
}

// end releases what a session holds once it is out of the table.
func (t *Table) end(s *session) {
	s.sock.Close()
	t.cfg.Flows.Release(s.flow)
}

// makeRoom ends the session that was not used for longest, if there are too many
// and it has settled. There are so few that looking at all of them is cheap.
func (t *Table) makeRoom(now time.Time) {
	t.mu.Lock()
	var victim *session
	if len(t.sessions) >= flow.MaxEcho {
		for _, s := range t.sessions {
			if now.Sub(s.used) >= settled && (victim == nil || s.used.Before(victim.used)) {
				victim = s
			}
		}
	}
	if victim != nil {
		delete(t.sessions, victim.key)
	}
	t.mu.Unlock()
	if victim != nil {
		t.end(victim)
	}
}
