package resolve

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/internal/flow"
)

var (
	serverA = netip.MustParseAddrPort("192.0.2.1:53")
	serverB = netip.MustParseAddrPort("192.0.2.2:53")
	serverC = netip.MustParseAddrPort("192.0.2.3:53")
)

var errUnreachable = errors.New("network is unreachable")

// behaviour is what a fake server does with a query.
type behaviour func(ctx context.Context, query []byte) ([]byte, error)

// answersAddr answers with one address after a delay.
func answersAddr(addr string, delay time.Duration) behaviour {
	return func(ctx context.Context, query []byte) ([]byte, error) {
		if err := wait(ctx, delay); err != nil {
			return nil, err
		}
		return dns.AnswerAddrs(query, []netip.Addr{netip.MustParseAddr(addr)}, 5), nil
	}
}

// answersRcode answers without records after a delay.
func answersRcode(rcode int, delay time.Duration) behaviour {
	return func(ctx context.Context, query []byte) ([]byte, error) {
		if err := wait(ctx, delay); err != nil {
			return nil, err
		}
		return dns.Error(query, rcode), nil
	}
}

func silent(ctx context.Context, _ []byte) ([]byte, error) { return nil, wait(ctx, time.Hour) }

func unreachable(context.Context, []byte) ([]byte, error) { return nil, errUnreachable }

// wait sleeps for d or until ctx ends. It starts no timer that has expired
// already: hundreds of those at once upset the race detector inside a bubble
// (the bubble's timers share one detector context, seen with Go 1.26).
func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// world is a set of fake servers. Servers that are not in it are unreachable.
type world struct {
	mu      sync.Mutex
	servers map[netip.AddrPort]behaviour
	asked   []netip.AddrPort
	ids     []uint16
}

func newWorld(servers map[netip.AddrPort]behaviour) *world { return &world{servers: servers} }

func (w *world) exchange(ctx context.Context, _ string, server netip.AddrPort, query []byte) ([]byte, error) {
	w.mu.Lock()
	w.asked = append(w.asked, server)
	w.ids = append(w.ids, dns.ID(query))
	b := w.servers[server]
	w.mu.Unlock()
	if b == nil {
		return nil, errUnreachable
	}
	return b(ctx, query)
}

func (w *world) set(server netip.AddrPort, b behaviour) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[server] = b
}

// takeAsked returns the servers asked since the last call, in order.
func (w *world) takeAsked() []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = nil
	return asked
}

// bed is a forwarder over a world, inside a synctest bubble. The bubble fails
// the test if a goroutine is left behind Close.
type bed struct {
	*testing.T
	*Forwarder
	world    *world
	counters *flow.Counters
}

func inBed(t *testing.T, servers map[netip.AddrPort]behaviour, upstreams []netip.AddrPort, test func(bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, counters := newWorld(servers), new(flow.Counters)
		f := New(Config{Upstreams: upstreams, Counters: counters, Exchange: w.exchange})
		defer f.Close()
		test(bed{t, f, w, counters})
	})
}

// outcome is what a client sees.
type outcome struct {
	Rcode int
	Addr  string
	Took  time.Duration
}

// ask sends one query of type A and waits for the reply.
func (b bed) ask() outcome {
	b.Helper()
	return <-b.start(packQuery(b.T, "example.com.", mdns.TypeA))
}

// start sends a query; the channel gives the reply.
func (b bed) start(query []byte) <-chan outcome {
	begun, replies := time.Now(), make(chan outcome, 2)
	b.Query(query, func(response []byte) {
		o := outcome{Rcode: dns.Rcode(response), Took: time.Since(begun)}
		if !dns.Matches(query, response) {
			b.Errorf("reply %x does not match query %x", response, query)
		}
		var m mdns.Msg
		if err := m.Unpack(response); err != nil {
			b.Errorf("reply %x: %v", response, err)
		}
		for _, rr := range m.Answer {
			if a, ok := rr.(*mdns.A); ok {
				o.Addr = a.A.String()
			}
		}
		replies <- o
	})
	return replies
}

func packQuery(t testing.TB, name string, qtype uint16) []byte {
	t.Helper()
	q, err := new(mdns.Msg).SetQuestion(name, qtype).Pack()
	if err != nil {
		t.Fatalf("pack %s: %v", name, err)
	}
	return q
}
