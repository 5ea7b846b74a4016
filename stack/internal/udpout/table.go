package udpout

import (
	"container/list"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
)

// dnsReserve is how many of flow.MaxUDP mappings only mappings towards name
// servers may use. A resolver library holds one for each query under way;
// queries to the engine's own resolver need none.
const dnsReserve = 64

// Table is the set of mappings. New starts its goroutines, the poller's, that of
// the express path's poller and the one that ends idle mappings; Close stops them and
// waits.
type Table struct {
	cfg     Config
	start   time.Time
	now     func() time.Time // time.Now but in tests
	poller  *hostsock.Poller
	janitor *hostsock.Janitor

	reader  outlet   // used by Handle and Flush only
	express *express // nil without

	fullOnce sync.Once // the one log line about descriptors

	opening sync.Mutex // held while a mapping is opened; locked before mu

	mu       sync.Mutex // guards the fields below; no system call is made under it
	closed   bool
	mappings map[netip.AddrPort]*mapping // bounded by limit
	limit    int
	reserve  int
	lru      [numClasses]queues
}

// queues holds the mappings of one class, by whether they had a reply, each
// queue from the one not used for longest to the one used last.
type queues [2]*list.List

// class is what a mapping counts as when there are too many.
type class int

const (
	general class = iota
	dns           // opened towards port 53 or 853
	numClasses
)

func classOf(port uint16) class {
	if port == 53 || port == 853 {
		return dns
	}
	return general
}

// New returns a running table. It takes over the files of c.Express, also when it
// fails.
func New(c Config) (*Table, error) {
	c = c.withDefaults()
	t := &Table{
		cfg:      c,
		start:    c.now(),
		now:      c.now,
		mappings: make(map[netip.AddrPort]*mapping),
		limit:    flow.MaxUDP,
		reserve:  dnsReserve,
	}
	for i := range t.lru {
		t.lru[i] = queues{list.New(), list.New()}
	}
	t.reader.t = t
	var err error
	if t.poller, err = hostsock.NewPoller(); err != nil {
		t.cfg.Express.abandon()
		return nil, fmt.Errorf("start UDP: %w", err)
	}
	if t.cfg.Express != nil {
		if t.express, err = newExpress(t, *t.cfg.Express); err != nil {
			_ = t.poller.Close() // of no consequence: it has no sockets
			return nil, fmt.Errorf("start UDP: %w", err)
		}
	}
	t.janitor = hostsock.NewJanitor(func() { t.expire(t.age()) }, t.cfg.Idle, t.cfg.IdleUnreplied)
	return t, nil
}

// Close ends every mapping and waits for the goroutines. Handle may still be
// called and does nothing. A Sender that waits must have been released before.
func (t *Table) Close() error {
	t.mu.Lock()
	again := t.closed
	t.closed = true
	all := t.takeLocked(func(*mapping) bool { return true })
	t.mu.Unlock()
	t.janitor.Close()
	if again {
		return nil
	}
	err := t.poller.Close()
	if t.express != nil {
		t.express.close()
	}
	for _, m := range all {
		t.end(m)
	}
	return err
}

// age is the time since the table's start; it is the clock of idle times.
func (t *Table) age() time.Duration { return t.now().Sub(t.start) }

// expire ends idle mappings, at most a quarter of the idle time late.
func (t *Table) expire(age time.Duration) {
	t.mu.Lock()
	idle := t.takeLocked(func(m *mapping) bool {
		after := t.cfg.IdleUnreplied
		if m.replied.Load() {
			after = t.cfg.Idle
		}
		return after > 0 && age-m.used() >= after
	})
	t.mu.Unlock()
	for _, m := range idle {
		t.end(m)
	}
	if t.express != nil {
		t.express.expire(age)
	}
}

// takeLocked takes those mappings out of the table for which which says so.
func (t *Table) takeLocked(which func(*mapping) bool) []*mapping {
	var taken []*mapping
	for _, m := range t.mappings {
		if which(m) {
			t.removeLocked(m)
			taken = append(taken, m)
		}
	}
	return taken
}

func (t *Table) removeLocked(m *mapping) {
	delete(t.mappings, m.from)
	m.queue.Remove(m.element)
}

// end releases what a mapping holds once it is out of the table.
func (t *Table) end(m *mapping) {
	if t.express != nil {
		t.express.endAll(m)
	}
	m.sock.Close()
	t.cfg.Flows.Release(m.flow)
}

// victimLocked returns the mapping that gives way to a new one of class c, or nil
// if there is room.
//
// General mappings never use the reserve, so a new one beyond their share
// replaces one of them. Otherwise the table is full because mappings to name
// servers use more than the reserve; one of those gives way, whoever asks.
func (t *Table) victimLocked(c class) *mapping {
	if c == general && t.lru[general].len() >= t.limit-t.reserve {
		return t.lru[general].first()
	}
	if len(t.mappings) < t.limit {
		return nil
	}
	return t.lru[dns].first()
}

// unrepliedLocked returns the mapping without a reply that was not used for
// longest, or nil: what to give up when descriptors run out.
func (t *Table) unrepliedLocked() *mapping {
	for _, q := range t.lru {
		if e := q[0].Front(); e != nil {
			return e.Value.(*mapping)
		}
	}
	return nil
}

func (q queues) len() int { return q[0].Len() + q[1].Len() }

// first returns the mapping of the class to give up first.
func (q queues) first() *mapping {
	for _, l := range q {
		if e := l.Front(); e != nil {
			return e.Value.(*mapping)
		}
	}
	return nil
}

// evict takes m out of the table and releases its descriptor.
func (t *Table) evict(m *mapping) {
	t.mu.Lock()
	if t.mappings[m.from] != m {
		t.mu.Unlock()
		return
	}
	t.removeLocked(m)
	t.mu.Unlock()
	t.end(m)
	t.cfg.Flows.Counters.Inc(flow.UDPEvicted)
}

func (t *Table) logFull(err error) {
	t.fullOnce.Do(func() {
		t.cfg.Logger.Warn("UDP: no descriptor left, datagrams of new flows are lost; raise the limit (ulimit -n)",
			slog.Any("error", err))
	})
}
