package datagram

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"github.com/postern-net/postern/portdriver"
)

// Kinds of flow, as indexes.
const (
	unreplied = iota
	replied
)

// table is the set of flows. Flows are added by one goroutine only.
type table struct {
	limit    int // of flows
	counters *portdriver.Counters

	mu      sync.RWMutex // guards the fields below and the flows' places in them
	flows   map[key]*Flow
	routes  map[portdriver.Route]*Flow // the same flows by what the container sees
	clients map[netip.Addr]*client     // those that have flows
	crowds  [2]ranking                 // of clients, by kind of flow
	next    uint16                     // port to try next; see otherPortLocked
}

func newTable(limit int, counters *portdriver.Counters) *table {
	t := &table{
		limit:    limit,
		counters: counters,
		flows:    make(map[key]*Flow),
		routes:   make(map[portdriver.Route]*Flow),
		clients:  make(map[netip.Addr]*client),
		next:     firstDynamic,
	}
	for kind := range t.crowds {
		t.crowds[kind] = ranking{kind: kind, levels: make(map[int]*list.List)}
	}
	return t
}

// find returns the flow of a key, or nil.
func (t *table) find(k key) *Flow {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.flows[k]
}

// byRoute returns the flow that the container knows by a route, or nil.
func (t *table) byRoute(r portdriver.Route) *Flow {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.routes[r]
}

// len returns how many flows there are.
func (t *table) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.flows)
}

// insert adds a flow for k, which has none, and returns it with the flow that gave
// way to it, whose way the caller closes. Without a flow the listener is shut or every
// source is taken.
func (t *table) insert(k key, r portdriver.Route, age time.Duration) (f, evicted *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k.listener.shut {
		return nil, nil
	}
	if len(t.flows) >= t.limit {
		evicted = t.victim()
		t.removeLocked(evicted)
	}
	if _, taken := t.routes[r]; taken {
		if r.Source = t.otherPortLocked(r); r.Source.Port() == 0 {
			return nil, evicted
		}
		t.counters.Inc(portdriver.OtherSource)
	}
	f = &Flow{table: t, key: k, route: r}
	f.lastUsed.Store(int64(age))
	f.renewed.Store(int64(age))
	t.flows[k], t.routes[r] = f, f
	f.client = t.clientLocked(clientOf(k.from.Addr()))
	f.element = t.crowds[unreplied].add(f.client, f)
	return f, evicted
}

func (t *table) clientLocked(a netip.Addr) *client {
	c := t.clients[a]
	if c == nil {
		c = &client{addr: a}
		t.clients[a] = c
	}
	return c
}

// removeLocked takes a flow out.
func (t *table) removeLocked(f *Flow) {
	f.ended.Store(true)
	delete(t.flows, f.key)
	delete(t.routes, f.route)
	t.crowds[f.kind()].remove(f.client, f.element)
	if c := f.client; c.shares[unreplied].flows.Len()+c.shares[replied].flows.Len() == 0 {
		delete(t.clients, c.addr)
	}
}

// attach gives a flow its way, and reports false if the flow has ended.
func (t *table) attach(f *Flow, w Way) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.ended.Load() {
		return false
	}
	f.way = w
	return true
}

// remove takes a flow out and reports whether it was in.
func (t *table) remove(f *Flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.ended.Load() {
		return false
	}
	t.removeLocked(f)
	return true
}

// renew makes a flow the one of its client that was used last.
func (t *table) renew(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !f.ended.Load() {
		f.client.shares[f.kind()].flows.MoveToBack(f.element)
	}
}

// answered makes a flow one that had a reply.
func (t *table) answered(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.ended.Load() || f.replied.Load() {
		return
	}
	t.crowds[unreplied].remove(f.client, f.element)
	f.replied.Store(true)
	f.element = t.crowds[replied].add(f.client, f)
}

// take takes out the flows for which which says so, and returns them.
func (t *table) take(which func(*Flow) bool) []*Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.takeLocked(which)
}

func (t *table) takeLocked(which func(*Flow) bool) []*Flow {
	var taken []*Flow
	for _, f := range t.flows {
		if which(f) {
			t.removeLocked(f)
			taken = append(taken, f)
		}
	}
	return taken
}

// shut takes out the flows of listeners, which get no others.
func (t *table) shut(gone []*listener) []*Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ln := range gone {
		ln.shut = true
	}
	return t.takeLocked(func(f *Flow) bool { return f.key.listener.shut })
}
