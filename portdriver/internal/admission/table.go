package admission

import "sync"

// Table counts the connections that exist and admits more. It is safe for
// concurrent use. It has no more entries than there are connections.
type Table struct {
	capacity int

	mu      sync.Mutex // guards the fields below
	total   int        // with those reserved
	clients map[Key]int
	ports   map[int]int
}

// NewTable returns an empty table for so many connections.
func NewTable(capacity int) *Table {
	return &Table{capacity: capacity, clients: make(map[Key]int), ports: make(map[int]int)}
}

// Capacity returns how many connections there may be.
func (t *Table) Capacity() int { return t.capacity }

// Len returns how many connections there are, with those reserved.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// Reserve takes the place of a connection whose client is not known yet: only
// accepting it tells. It reports false if all places are taken. Each place ends
// with Cancel, or with Claim, and then Release if that admitted it.
func (t *Table) Reserve() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total >= t.capacity {
		return false
	}
	t.total++
	return true
}

// Cancel gives a reserved place back.
func (t *Table) Cancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
}

// Claim makes a reserved place that of a client's connection to a port, which is
// any number that tells ports apart. If it reports false, the client or the port
// has its share and the place has been given back.
func (t *Table) Claim(client Key, port int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	verdict := Decide(Load{
		Capacity: t.capacity, Total: t.total - 1, // without the place itself
		Client: t.clients[client], Port: t.ports[port], Identified: client.Identified(),
	})
	if verdict != Admit {
		t.total--
		return false
	}
	if client.Identified() {
		t.clients[client]++
	}
	t.ports[port]++
	return true
}

// Release ends a connection that was claimed with the same arguments.
func (t *Table) Release(client Key, port int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
	if client.Identified() {
		drop(t.clients, client)
	}
	drop(t.ports, port)
}

// drop takes one from a count and forgets counts of nothing.
func drop[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}
