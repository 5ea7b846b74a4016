// Package admission decides whether one more published connection is taken.
//
// Every connection costs descriptors, so all of them together are bounded. Nobody
// may take them all: a client that opens connections and says nothing would lock
// the others out. A single client, such as a load generator on an otherwise idle
// machine, still gets most of them.
//
//	held by all      who is admitted
//	below 3/4        everyone
//	3/4 to 7/8       clients that hold less than 1/8
//	7/8 to all       those, and only to ports that hold less than 1/8
//	all              nobody: accepting pauses, and clients wait in the kernel
//
// So a greedy client gets 3/4; others reach its port until 7/8 are taken, and other
// ports up to the last connection, however many clients crowd the busy one. Clients
// on the host's loopback and on unix sockets cannot be told from each other, so
// only the port's share counts for them.
//
// A client is an IPv4 address or the /64 prefix of an IPv6 address: a host has at
// least that much (RFC 6177).
package admission

import "net/netip"

// Verdict is what to do with one more connection.
type Verdict uint8

// The verdicts.
const (
	Admit  Verdict = iota
	Refuse         // the client or the port has its share; others are to have the rest
	Wait           // all are taken
)

// Load is how many connections there are before one more.
type Load struct {
	// Capacity is how many there may be, Total how many there are.
	Capacity, Total int
	// Client and Port are how many of them the client and the port hold. Client
	// counts only if Identified: the client's address tells it from others.
	Client, Port int
	Identified   bool
}

// Decide says what to do with one more connection.
func Decide(l Load) Verdict {
	share := max(1, l.Capacity/8)
	client, port := l.Client < share, l.Port < share
	if !l.Identified {
		client = port
	}
	switch {
	case l.Total >= l.Capacity:
		return Wait
	case l.Total < l.Capacity*3/4:
		return Admit
	case l.Total < l.Capacity*7/8 && client:
		return Admit
	case client && port:
		return Admit
	}
	return Refuse
}

// Capacity is how many connections fit below most with a limit of descriptors of
// which reserve are needed for other things. Each takes two. It is at least 1: a
// process with fewer descriptors than it needs learns that from the kernel.
func Capacity(most int, limit uint64, reserve int) int {
	if limit <= uint64(reserve) {
		return 1
	}
	free := (limit - uint64(reserve)) / 2
	return max(1, int(min(free, uint64(most))))
}

// Key is a client as admission tells clients apart. The zero Key is a client whose
// address says nothing.
type Key struct{ prefix netip.Addr }

// KeyOf returns the key of a client's address.
func KeyOf(client netip.Addr) Key {
	client = client.Unmap().WithZone("")
	if !client.IsValid() || client.IsLoopback() {
		return Key{}
	}
	if client.Is4() {
		return Key{client}
	}
	p, _ := client.Prefix(64) // 64 is within every IPv6 address
	return Key{p.Addr()}
}

// Identified reports whether the key tells a client from others.
func (k Key) Identified() bool { return k.prefix.IsValid() }
