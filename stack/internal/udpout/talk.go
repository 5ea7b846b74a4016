package udpout

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
)

// What makes a flow move over, and what it costs when it cannot.
const (
	// busy is how many datagrams within window, both directions together, make a
	// flow one that keeps talking. Moving costs as much as some ten datagrams on the
	// universal path; a query with its answer and their repetitions stays below.
	busy = 8
	// busyDNS is the same for name servers: many short exchanges of one port.
	busyDNS = 64
	window  = time.Second

	// missingRest is how long a flow waits for another attempt when no socket was in
	// stock: a visit to the namespace takes milliseconds.
	missingRest = 20 * time.Millisecond
	// fullRest is the same when all pairs are in use.
	fullRest = window
	// failedRest is the same when the socket could not be bound: what is in the way
	// is a socket of the container, and those live long.
	failedRest = 30 * time.Second
	// foreignRest is the same for a flow that is not the namespace's own.
	foreignRest = 30 * time.Second

	// missedRest is the same for a flow whose datagrams did not come over. Each
	// attempt costs it one.
	missedRest = 5 * time.Minute

	// maxTalks is how many flows are watched at once, of 100 bytes each. More talk
	// within one window only in a scan, which has no flow that is worth moving.
	maxTalks = 4096

	// mostPairs is how many flows may be on the express path; each has a descriptor
	// and a receive buffer. What one container keeps busy on two to four processors
	// is far less.
	mostPairs = 256
	// pairIdle ends a pair that is not used. The container's conntrack forgets a
	// flow without an answer after 30 s (nf_conntrack_udp_timeout), and with it that
	// it had moved over.
	pairIdle = 30 * time.Second

	// maxUnanswered is how many flows in a row may fail to be handed over by the
	// container's kernel before no more are tried, for the time of pause.
	maxUnanswered = 3
	pause         = 30 * time.Second
)

// maxPairs is mostPairs, or less where descriptors are few: an eighth of them.
func maxPairs() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return mostPairs
	}
	return int(max(1, min(l.Cur/8, mostPairs)))
}

// talkKey names a flow.
type talkKey struct{ from, to netip.AddrPort }

// talk is how much a flow has talked since a moment, and until when it must not be
// moved over. The times are ages of the table.
type talk struct {
	since, until time.Duration
	said         time.Duration // when the container's last datagram came, 0 for never
	n            int
}

// talked counts n datagrams of a flow and reports whether it is to move over now.
// Whoever is told so tries; nobody else does meanwhile.
func (x *express) talked(m *mapping, to netip.AddrPort, n int) bool {
	return x.count(m, to, n, question)
}

// heard counts n datagrams of a flow that cannot move over with these.
func (x *express) heard(m *mapping, to netip.AddrPort, n int) { x.count(m, to, n, past) }

// answers is talked for what came from outside. While the container talks, too, the
// flow moves over with a datagram of its own: only the reader knows what of it is
// still in the device.
func (x *express) answers(m *mapping, from netip.AddrPort, n int) bool {
	return x.count(m, from, n, answer)
}

// kind is what datagrams are counted as.
type kind int

const (
	question kind = iota // the container's, which may move over
	past                 // the container's, already dealt with
	answer               // from outside
)

func (x *express) count(m *mapping, to netip.AddrPort, n int, what kind) (due bool) {
	if !x.serves(m.from.Addr()) {
		return false
	}
	age := x.t.age()
	x.mu.Lock()
	defer x.mu.Unlock()
	k := talkKey{m.from, to}
	e, known := x.talks[k]
	if what != answer {
		e.said = max(age, 1)
	}
	if age < e.until || age < x.resume {
		if known {
			x.talks[k] = e
		}
		return false
	}
	if age-e.since >= window {
		e.since, e.n = age, 0
	}
	e.n += n
	movable := what == question || what == answer && (e.said == 0 || age-e.said >= patience)
	if due = movable && e.n >= enough(to); due {
		e.n, e.until = 0, age+missingRest
	}
	if !known && len(x.talks) >= maxTalks && age-x.pruned >= window {
		x.pruneLocked(age)
	}
	if known || len(x.talks) < maxTalks {
		x.talks[k] = e
	}
	return due
}

// enough is how many datagrams to a remote make a flow move over.
func enough(to netip.AddrPort) int {
	if classOf(to.Port()) == dns {
		return busyDNS
	}
	return busy
}

// pruneLocked forgets flows that have nothing to be remembered for.
func (x *express) pruneLocked(age time.Duration) {
	x.pruned = age
	for k, e := range x.talks {
		if age-max(e.since, e.said) >= window && age >= e.until {
			delete(x.talks, k)
		}
	}
}

// rest keeps a flow on the universal path for a while.
func (x *express) rest(m *mapping, to netip.AddrPort, d time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := talkKey{m.from, to}
	if e, ok := x.talks[k]; ok {
		e.n, e.until = 0, x.t.age()+d
		x.talks[k] = e
	}
}

// answered notes that the container's kernel hands flows over.
func (x *express) answered() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unanswered = 0
}

// missed notes a flow whose datagrams do not come over although they should: not the
// namespace's own, or somebody has changed the rules in there. After several in a
// row all stay where they are for a while.
func (x *express) missed() {
	x.t.cfg.Flows.Counters.Inc(flow.UDPExpressUnanswered)
	x.mu.Lock()
	x.unanswered++
	lost := x.unanswered >= maxUnanswered
	if lost {
		x.unanswered, x.resume = 0, x.t.age()+pause
	}
	x.mu.Unlock()
	if !lost {
		return
	}
	if x.cfg.Lost != nil {
		x.cfg.Lost()
	}
	x.lostOnce.Do(func() {
		x.t.cfg.Logger.Warn("UDP: the container's kernel does not hand flows over, they stay on the slower path; " +
			"has somebody changed nftables, rules or sysctls in the container?")
	})
}
