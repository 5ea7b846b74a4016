package resolve

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/postern-net/postern/proto/dns"
)

const (
	// negativeHold is how long "no such name" from a later server waits for an
	// earlier one that is still being asked. With the default Stagger a dead
	// first server costs such an answer 1 s altogether.
	negativeHold = 600 * time.Millisecond
	// roundPause is the least time from the start of the first round to that of
	// the second; it doubles with every round. It keeps a host that is offline,
	// where every try fails at once, from spinning.
	roundPause = 400 * time.Millisecond
	// maxTries bounds the sockets of one lookup. TryTimeout over Stagger are open
	// by themselves; only changes of the list can lead to more, and then the
	// oldest try gives way.
	maxTries = 5
)

// verdict says how good a response is; a greater one replaces a lesser one.
type verdict uint8

const (
	none     verdict = iota
	failure          // another server may do better
	negative         // an earlier server may know more
	final
)

// judge says how good a response is.
func judge(response []byte) verdict {
	switch dns.Rcode(response) {
	case -1, dns.RcodeServFail, dns.RcodeRefused, dns.RcodeNotImp:
		return failure
	}
	if dns.IsNegative(response) {
		return negative
	}
	return final
}

// try is one question to one server.
type try struct {
	server  netip.AddrPort
	rank    int // the server's place in the order
	started time.Time
	cancel  context.CancelFunc
}

// result is how a try ended: response, or nil.
type result struct {
	try      *try
	response []byte
	timedOut bool
}

// lookup is one query on its way to the servers. Its goroutine (run) owns all
// fields but results; the tries report there.
type lookup struct {
	f       *Forwarder
	network string
	query   []byte
	results chan result
	wg      sync.WaitGroup // tries

	servers []netip.AddrPort
	next    int // the server to ask next
	tries   map[netip.AddrPort]*try
	timer   *time.Timer // silence has lasted long enough
	round   time.Time   // when the round began
	pause   time.Duration

	best struct {
		verdict  verdict
		rank     int
		response []byte
	}
}

// lookUp asks the host's servers and returns the best response, with an
// identifier of its own, or nil if there is none.
func (f *Forwarder) lookUp(ctx context.Context, network string, query []byte) []byte {
	l := &lookup{
		f: f, network: network, query: query,
		results: make(chan result),
		tries:   make(map[netip.AddrPort]*try),
		timer:   time.NewTimer(f.cfg.Stagger),
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.TotalTimeout)
	l.run(ctx)
	cancel()
	l.timer.Stop()
	l.wg.Wait()
	return l.best.response
}

func (l *lookup) run(ctx context.Context) {
	servers, changed := l.f.upstreams.order(time.Now())
	done := l.adopt(ctx, servers)
	for !done {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			servers, changed = l.f.upstreams.order(time.Now())
			done = l.adopt(ctx, servers)
		case <-l.timer.C:
			done = l.silence(ctx)
		case r := <-l.results:
			done = l.take(ctx, r)
		}
	}
}

// adopt starts over with a list of servers. Tries at the old ones go on, as the
// last in the order. A failure or negative answer of an old server counts no more.
func (l *lookup) adopt(ctx context.Context, servers []netip.AddrPort) (done bool) {
	l.servers, l.next, l.pause = servers, 0, roundPause
	l.best.verdict, l.best.response = none, nil
	for _, t := range l.tries {
		t.rank = len(servers)
	}
	return l.advance(ctx)
}

// silence acts on the timer.
func (l *lookup) silence(ctx context.Context) (done bool) {
	if l.best.verdict == negative {
		l.markOvertaken()
		return true
	}
	return l.advance(ctx)
}

// advance asks the next server. With none left it lets those of the list that
// are being asked finish; then the best response is final, or the round starts
// again.
func (l *lookup) advance(ctx context.Context) (done bool) {
	if l.next == 0 {
		l.round = time.Now()
	}
	for l.next < len(l.servers) {
		server, rank := l.servers[l.next], l.next
		l.next++
		if t := l.tries[server]; t != nil { // since before the list changed
			t.rank = rank
			continue
		}
		l.ask(ctx, server, rank)
		l.timer.Reset(l.f.cfg.Stagger)
		return false
	}
	l.timer.Stop()
	switch {
	case len(l.servers) == 0:
		return len(l.tries) == 0 // old servers may still answer
	case l.asking(len(l.servers)):
		return false
	case l.best.verdict != none:
		return true
	}
	rest := time.Until(l.round.Add(l.pause))
	l.next, l.pause = 0, 2*l.pause
	if rest <= 0 {
		return l.advance(ctx) // asks the first server
	}
	l.timer.Reset(rest)
	return false
}

// ask starts a try with a fresh identifier.
func (l *lookup) ask(ctx context.Context, server netip.AddrPort, rank int) {
	if len(l.tries) >= maxTries {
		l.dropOldest()
	}
	tryCtx, cancel := context.WithTimeout(ctx, l.f.cfg.TryTimeout)
	t := &try{server: server, rank: rank, started: time.Now(), cancel: cancel}
	l.tries[server] = t
	query := slices.Clone(l.query)
	dns.SetID(query, uint16(rand.Uint32()))
	l.wg.Go(func() {
		defer cancel()
		r := result{try: t}
		var err error
		if r.response, err = l.f.cfg.Exchange(tryCtx, l.network, server, query); err != nil {
			r.response = nil
			r.timedOut = errors.Is(tryCtx.Err(), context.DeadlineExceeded) && ctx.Err() == nil
		}
		select {
		case l.results <- r:
		case <-ctx.Done():
		}
	})
}

func (l *lookup) dropOldest() {
	var oldest *try
	for _, t := range l.tries {
		if oldest == nil || t.started.Before(oldest.started) {
			oldest = t
		}
	}
	oldest.cancel()
	delete(l.tries, oldest.server)
}

// take acts on the end of a try.
func (l *lookup) take(ctx context.Context, r result) (done bool) {
	if l.tries[r.try.server] != r.try {
		return false // dropped
	}
	delete(l.tries, r.try.server)
	if r.timedOut {
		l.f.upstreams.timedOut(r.try.server, time.Now())
	}
	isBest := r.response != nil && l.keep(r)
	switch l.best.verdict {
	case final:
		l.markOvertaken()
		return true
	case negative:
		if !l.asking(l.best.rank) {
			return true
		}
		if isBest {
			l.timer.Reset(negativeHold)
		}
		return false
	}
	if r.try.rank == len(l.servers) && len(l.servers) > 0 {
		return false // an old server: the round does not depend on it
	}
	return l.advance(ctx)
}

// keep remembers a response if it is better than what there is, or equally good
// and from an earlier server.
func (l *lookup) keep(r result) bool {
	l.f.upstreams.answered(r.try.server)
	b, v := &l.best, judge(r.response)
	if v < b.verdict || (v == b.verdict && r.try.rank >= b.rank) {
		return false
	}
	b.verdict, b.rank, b.response = v, r.try.rank, r.response
	return true
}

// asking reports whether a server that ranks before another is being asked.
func (l *lookup) asking(before int) bool {
	for _, t := range l.tries {
		if t.rank < before {
			return true
		}
	}
	return false
}

// markOvertaken notes the servers that have been silent for longer than a
// Stagger while a later one answered.
func (l *lookup) markOvertaken() {
	now := time.Now()
	for _, t := range l.tries {
		if t.rank < l.best.rank && now.Sub(t.started) >= l.f.cfg.Stagger {
			l.f.upstreams.overtaken(t.server, now)
		}
	}
}
