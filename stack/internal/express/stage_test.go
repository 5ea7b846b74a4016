package express

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/stacktest"
)

// settled waits until the loop has done what it was told.
func (r *rig) settled() {
	for _, h := range r.homes {
		if h != nil {
			done := make(chan struct{})
			h.run(func() { close(done) })
			<-done
		}
	}
}

func TestRetransmissionWhileDialing(t *testing.T) {
	eachSide(t, 1, func(t *testing.T, r *rig) {
		at, answer := r.hanging(t)
		k := r.key()
		r.take(t, k, at)
		for seq := uint32(2); seq < 5; seq++ {
			if !r.Take(syn(k, seq), k, at) {
				t.Fatal("a SYN that was sent again was not taken")
			}
			r.settled()
		}
		if a, b, c, d := r.sender.sent(); a+b+c+d != 0 || r.count(flow.TCPAdmitted) != 1 || r.flows.Len(flow.TCP) != 1 {
			t.Errorf("%d packets, %v", a+b+c+d, r.flows.Counters.Snapshot())
		}
		answer()
		r.client(t)
		r.await(t, flow.TCPExpress, 1)
		if p := r.sender.reinjected; len(p) != 1 || p[0].Payload(p[0].Bytes)[7] != 4 {
			t.Errorf("%d written back, want the last one", len(p))
		}
	})
}

// A SYN that was written back in vain is written back again when the client sends it
// again.
func TestRetransmissionAfterReinjection(t *testing.T) {
	eachSide(t, 1, func(t *testing.T, r *rig) {
		r.patience = stacktest.Patience
		at, _ := r.server(t)
		k := r.key()
		r.sender.hook(nil)
		r.take(t, k, at)
		r.settled()
		r.sender.hook(r.connect)
		forwarded := syn(k, 1) // by the container itself, since there are no rules
		forwarded.TTL--
		if !r.Take(forwarded, k, at) {
			t.Error("a SYN in circles was not taken")
		}
		r.settled()
		if a, _, _, _ := r.sender.sent(); a != 1 {
			t.Errorf("a SYN in circles was written back: %d", a)
		}
		r.take(t, k, at)
		r.client(t)
		r.await(t, flow.TCPExpress, 1)
		if a, _, _, _ := r.sender.sent(); a != 2 {
			t.Errorf("%d written back, want 2", a)
		}
	})
}

// The handshake need not be over when the write returns.
func TestLateHandshake(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		r.patience = stacktest.Patience
		at, _ := r.server(t)
		written := make(chan link.Packet, 1)
		r.sender.hook(func(p link.Packet) error {
			written <- clone(p)
			return nil
		})
		r.take(t, r.key(), at)
		p := <-written
		r.settled()
		if err := r.connect(p); err != nil {
			t.Fatal(err)
		}
		r.client(t)
		r.await(t, flow.TCPExpress, 1)
	})
}

func TestClientGivesUp(t *testing.T) {
	eachSide(t, 1, func(t *testing.T, r *rig) {
		r.every, r.patience = time.Millisecond, time.Millisecond
		at, answer := r.hanging(t)
		r.take(t, r.key(), at)
		stacktest.Eventually(t, "a look at the client", func() bool {
			r.diag.mu.Lock()
			defer r.diag.mu.Unlock()
			return r.diag.asked > 3
		})
		r.diag.say(none, nil) // while the dial hangs
		r.await(t, flow.TCPExpressAbandoned, 1)
		r.empty(t)

		r.every = stacktest.Patience // just before the target answers
		r.diag.say(synSent, nil)
		r.take(t, r.key(), at)
		r.settled()
		r.diag.say(none, nil)
		answer()
		r.await(t, flow.TCPExpressAbandoned, 2)

		at, _ = r.server(t) // after the SYN was written back
		r.sender.hook(nil)
		r.diag.say(synSent, nil)
		r.sender.hook(func(link.Packet) error { r.diag.say(none, nil); return nil })
		r.take(t, r.key(), at)
		r.await(t, flow.TCPExpressAbandoned, 3)
		r.empty(t)
		if a, b, c, d := r.sender.sent(); a != 1 || b+c+d != 0 || r.count(flow.TCPExpressUnanswered) != 1 {
			t.Errorf("%d, %d, %d, %d sent, %v", a, b, c, d, r.flows.Counters.Snapshot())
		}
	})
}

func TestDialTimeout(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	r.every = time.Millisecond
	at, _ := r.hanging(t)
	k := r.key()
	r.take(t, k, at)
	c := r.find(k)
	c.home.run(func() { c.started = c.started.Add(-flow.DialTimeout) })
	r.await(t, flow.TCPDialTimeout, 1)
	r.empty(t)
	if a, b, c, d := r.sender.sent(); a+b+c+d != 0 {
		t.Errorf("%d packets sent", a+b+c+d)
	}
}

// Without an answer to the SYN the universal path gets it, and after three the path
// rests, until it has worked again.
func TestFallbackAndPause(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		r.patience = time.Millisecond
		var log strings.Builder
		r.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		at, _ := r.server(t)
		r.sender.hook(nil)
		fail := func(what string, n int) {
			t.Helper()
			k := r.key()
			r.take(t, k, at)
			r.empty(t)
			stacktest.Eventually(t, what, func() bool { _, b, _, _ := r.sender.sent(); return b == n })
			r.settled()
			if got := keyOf(r.sender.resubmitted[n-1]); got != k {
				t.Errorf("%s: %v was resubmitted, want %v", what, got, k)
			}
		}
		for n := 1; n <= 3; n++ {
			fail("fallback", n)
		}
		k := r.key()
		if r.Take(syn(k, 1), k, at) {
			t.Error("taken while the path rests")
		}
		if r.lost != 1 || strings.Count(log.String(), "\n") != 1 || r.count(flow.TCPExpressPauses) != 1 || r.sender.held != 0 {
			t.Errorf("lost %d times, %d held, log: %s, %v", r.lost, r.sender.held, &log, r.flows.Counters.Snapshot())
		}
		r.health.until.Store(1) // it has rested
		fail("one more failure", 4)
		if r.lost != 2 || r.health.pause != 2*firstPause || !r.health.paused() {
			t.Errorf("lost %d times, rests for %v", r.lost, r.health.pause)
		}
		r.health.until.Store(1)
		r.patience = pairTimeout
		r.sender.hook(r.connect)
		r.open(t, r.key())
		r.await(t, flow.TCPExpress, 1)
		if r.health.paused() || r.health.failures.Load() != 0 {
			t.Error("a success is not the end of it")
		}
	})
}

// A device that fails is a failure too, but not one that is being closed.
func TestReinjectFails(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	at, _ := r.server(t)
	r.sender.hook(func(link.Packet) error { return errors.New("interface is down") })
	r.take(t, r.key(), at)
	r.await(t, flow.TCPExpressFallback, 1)
	r.empty(t)
	r.sender.hook(func(link.Packet) error { return os.ErrClosed })
	r.take(t, r.key(), at)
	r.empty(t)
	if _, b, _, _ := r.sender.sent(); b != 1 || r.count(flow.TCPExpressFallback) != 1 {
		t.Errorf("%d resubmitted, %v", b, r.flows.Counters.Snapshot())
	}
}

// A client that is connected, but not to us, must not be answered twice.
func TestSomebodyElseAccepts(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	r.patience = time.Millisecond
	at, _ := r.server(t)
	r.sender.hook(func(link.Packet) error { r.diag.say(established, nil); return nil })
	r.take(t, r.key(), at)
	r.await(t, flow.TCPExpressUnanswered, 1)
	r.empty(t)
	if _, b, c, d := r.sender.sent(); b+c+d != 0 {
		t.Errorf("%d packets sent", b+c+d)
	}
}

// A client that is gone when its SYN has been written back may have been connected to
// nobody and reset: with its packets' marks taken away this happens to every one. Three in
// a row, and the path rests.
func TestGoneAfterReinjection(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	r.patience = time.Millisecond
	at, _ := r.server(t)
	r.sender.hook(func(link.Packet) error { r.diag.say(none, nil); return nil })
	for n := range uint64(maxFailures) {
		r.diag.say(synSent, nil)
		k := r.key()
		if !r.Take(syn(k, 1), k, at) {
			t.Fatalf("not taken after %d", n)
		}
		r.await(t, flow.TCPExpressUnanswered, n+1)
		r.empty(t)
	}
	r.diag.say(synSent, nil)
	k := r.key()
	if r.Take(syn(k, 1), k, at) || r.count(flow.TCPExpressPauses) != 1 || r.count(flow.TCPExpressAbandoned) != maxFailures {
		t.Errorf("the path does not rest: %v", r.flows.Counters.Snapshot())
	}
	if _, b, c, d := r.sender.sent(); b+c+d != 0 {
		t.Errorf("%d packets sent", b+c+d)
	}
}

// Whoever connects to the listener without having been judged by the guard is reset,
// also with the addresses of a connection whose dial is under way.
func TestStrays(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		stray := func(k flow.Key, n uint64) {
			t.Helper()
			if err := r.connect(syn(k, 1)); err == nil {
				wantReset(t, "a stray", r.client(t))
			} else if !errors.Is(err, unix.ECONNRESET) { // so early that Dial sees it
				t.Fatal(err)
			}
			r.await(t, flow.TCPExpressUnpaired, n)
		}
		stray(r.key(), 1)
		at, answer := r.hanging(t)
		k := r.key()
		r.take(t, k, at)
		stray(k, 2)
		other := k
		other.Initiating = r.key().Initiating
		stray(other, 3)
		answer()
		r.client(t)
		r.await(t, flow.TCPExpress, 1)
		var wg sync.WaitGroup
		for range 2 * acceptBudget {
			k := r.key()
			wg.Go(func() { _ = r.connect(syn(k, 1)) })
		}
		r.await(t, flow.TCPExpressUnpaired, 3+2*acceptBudget)
		wg.Wait()
	})
}

func TestOldestDialGivesWay(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	at, _ := r.hanging(t)
	k := r.key()
	r.take(t, k, at)
	r.settled()
	var others []*flow.Flow
	for i := range flow.MaxPendingTCP {
		target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i >> 8)}), uint16(i+1))
		f := r.flows.AdmitDial(flow.Key{Proto: flow.TCP, Initiating: k.Initiating, Target: target}, func() {})
		if f == nil {
			t.Fatalf("flow %d was refused", i)
		}
		others = append(others, f)
	}
	stacktest.Eventually(t, "the oldest dial to give way", func() bool { return r.find(k) == nil })
	if r.count(flow.TCPEvicted) != 1 {
		t.Errorf("%v", r.flows.Counters.Snapshot())
	}
	for _, f := range others {
		r.flows.Release(f)
	}
	if a, b, c, d := r.sender.sent(); a+b+c+d != 0 {
		t.Errorf("%d packets sent", a+b+c+d)
	}
}

// A target that swallows SYNs leaves room for others; more of them are dropped.
func TestPerDestinationLimit(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	at := netip.MustParseAddrPort("198.51.100.1:80")
	var others []*flow.Flow
	k := r.key()
	for i := range flow.MaxPendingPerDestination {
		initiating := netip.AddrPortFrom(k.Initiating.Addr(), uint16(i+1))
		others = append(others, r.flows.AdmitDial(flow.Key{Proto: flow.TCP, Initiating: initiating, Target: k.Target}, func() {}))
	}
	r.take(t, k, at)
	if r.find(k) != nil || r.count(flow.TCPRefusedDestination) != 1 {
		t.Errorf("%v", r.flows.Counters.Snapshot())
	}
	for _, f := range others {
		r.flows.Release(f)
	}
}

// Close ends everything at every stage.
func TestClose(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		r.patience = stacktest.Patience
		hang, _ := r.hanging(t)
		client, server := r.open(t, r.key())
		r.await(t, flow.TCPExpress, 1)
		r.take(t, r.key(), hang)
		at, l := r.server(t)
		r.sender.hook(nil)
		r.take(t, r.key(), at)
		injectedTo := accepted(t, l)
		r.settled()
		for range 5 { // not started yet
			r.take(t, r.key(), hang)
		}
		r.Close()
		if n := r.flows.Len(flow.TCP); n != 0 || len(r.conns) != 0 {
			t.Errorf("%d flows, %d connections are left", n, len(r.conns))
		}
		wantReset(t, "the client", client)
		wantReset(t, "the server", server)
		wantReset(t, "the server of a connection that is not paired", injectedTo)
		if _, b, c, d := r.sender.sent(); b+c+d != 0 {
			t.Errorf("%d packets sent", b+c+d)
		}
		r.Close()
	})
}

// Clients come and go while it is closed.
func TestCloseWhileClientsCome(t *testing.T) {
	for range 10 {
		r := newRig(t, sides[0], 2, 0)
		at, l := r.server(t)
		served := make(chan struct{})
		go func() {
			defer close(served)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
			}
		}()
		keys := make([]flow.Key, 60)
		for i := range keys {
			keys[i] = r.key()
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, k := range keys {
				r.Take(syn(k, 1), k, at)
			}
		}()
		stacktest.Eventually(t, "the first clients", func() bool { return r.count(flow.TCPExpress) > 5 })
		r.Close()
		<-done
		l.Close()
		<-served
		for len(r.clients) > 0 {
			(<-r.clients).Close()
		}
	}
}
