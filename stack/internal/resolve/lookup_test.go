package resolve

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/internal/flow"
)

func TestWhichAnswerTheClientGets(t *testing.T) {
	const ms = time.Millisecond
	servFail, nxDomain := answersRcode(dns.RcodeServFail, 0), answersRcode(dns.RcodeNXDomain, 0)
	for name, c := range map[string]struct {
		a, b, c behaviour
		want    outcome
	}{
		"first answers":                 {answersAddr("198.51.100.1", 20*ms), answersAddr("198.51.100.2", 0), nil, outcome{0, "198.51.100.1", 20 * ms}},
		"first slow, not slow enough":   {answersAddr("198.51.100.1", 390*ms), answersAddr("198.51.100.2", 0), nil, outcome{0, "198.51.100.1", 390 * ms}},
		"first silent":                  {silent, answersAddr("198.51.100.2", 20*ms), nil, outcome{0, "198.51.100.2", 420 * ms}},
		"first slow, still the fastest": {answersAddr("198.51.100.1", 500*ms), silent, silent, outcome{0, "198.51.100.1", 500 * ms}},
		"two silent":                    {silent, silent, answersAddr("198.51.100.3", 0), outcome{0, "198.51.100.3", 800 * ms}},
		"first unreachable":             {unreachable, answersAddr("198.51.100.2", 0), nil, outcome{0, "198.51.100.2", 0}},
		"first fails":                   {servFail, answersAddr("198.51.100.2", 0), nil, outcome{0, "198.51.100.2", 0}},
		"first refuses":                 {answersRcode(dns.RcodeRefused, 0), answersRcode(dns.RcodeNotImp, 0), answersAddr("198.51.100.3", 0), outcome{0, "198.51.100.3", 0}},
		"nobody better than SERVFAIL":   {servFail, unreachable, answersRcode(dns.RcodeRefused, 0), outcome{dns.RcodeServFail, "", 0}},
		"earlier failure preferred":     {answersRcode(dns.RcodeRefused, 450*ms), servFail, silent, outcome{dns.RcodeRefused, "", 2400 * ms}},
		"SERVFAIL, others silent":       {servFail, silent, silent, outcome{dns.RcodeServFail, "", 2400 * ms}},
		"NXDOMAIN at first hand":        {nxDomain, answersAddr("198.51.100.2", 0), nil, outcome{dns.RcodeNXDomain, "", 0}},
		"NXDOMAIN at second hand":       {answersAddr("198.51.100.1", 700*ms), nxDomain, nil, outcome{0, "198.51.100.1", 700 * ms}},
		"NODATA at second hand":         {answersAddr("198.51.100.1", 700*ms), answersRcode(0, 0), nil, outcome{0, "198.51.100.1", 700 * ms}},
		"NXDOMAIN after silence":        {silent, nxDomain, nil, outcome{dns.RcodeNXDomain, "", 1000 * ms}},
		"NXDOMAIN, earlier one fails":   {answersRcode(dns.RcodeServFail, 600*ms), nxDomain, nil, outcome{dns.RcodeNXDomain, "", 600 * ms}},
		"NXDOMAIN beats SERVFAIL":       {servFail, nxDomain, nil, outcome{dns.RcodeNXDomain, "", 0}},
		"all silent":                    {silent, silent, silent, outcome{dns.RcodeServFail, "", 5000 * ms}},
		"all unreachable":               {unreachable, unreachable, unreachable, outcome{dns.RcodeServFail, "", 5000 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			servers := map[netip.AddrPort]behaviour{serverA: c.a, serverB: c.b, serverC: c.c}
			inBed(t, servers, []netip.AddrPort{serverA, serverB, serverC}, func(b bed) {
				if d := cmp.Diff(c.want, b.ask()); d != "" {
					b.Error(d)
				}
			})
		})
	}
}

func TestNoUpstreamsIsServFailAtOnce(t *testing.T) {
	inBed(t, nil, nil, func(b bed) {
		if got := b.ask(); got != (outcome{Rcode: dns.RcodeServFail}) {
			b.Errorf("got %+v", got)
		}
		if asked := b.world.takeAsked(); len(asked) != 0 {
			b.Errorf("asked %v", asked)
		}
		if n := b.counters.Load(flow.DNSUpstreamFailed); n != 1 {
			b.Errorf("counted %d failures", n)
		}
	})
}

func TestLostDatagramIsSentAgain(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: silent}, []netip.AddrPort{serverA}, func(b bed) {
		reply := b.start(packQuery(b.T, "example.com.", 1))
		time.Sleep(time.Second)
		b.world.set(serverA, answersAddr("198.51.100.1", 0))
		if got, want := <-reply, (outcome{0, "198.51.100.1", 2 * time.Second}); got != want {
			b.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestOfflineHostIsAskedSeldom(t *testing.T) {
	inBed(t, nil, []netip.AddrPort{serverA, serverB}, func(b bed) {
		b.ask()
		if asked := b.world.takeAsked(); len(asked) != 8 { // at 0, 400, 1200 and 2800 ms
			b.Errorf("asked %d times", len(asked))
		}
	})
}

func TestSilentServerGoesToTheBack(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{serverA: silent, serverB: answersAddr("198.51.100.2", 0)}
	inBed(t, servers, []netip.AddrPort{serverA, serverB}, func(b bed) {
		for i := range maxMisses {
			if got := b.ask(); got.Took != 400*time.Millisecond {
				b.Errorf("query %d took %s", i, got.Took)
			}
		}
		if got := b.ask(); got.Took != 0 {
			b.Errorf("with the silent server at the back: %s", got.Took)
		}
		time.Sleep(penalty)
		if got := b.ask(); got.Took != 400*time.Millisecond {
			b.Errorf("after the penalty: %s", got.Took)
		}
		if got := b.ask(); got.Took != 0 {
			b.Errorf("silent again, but not at the back: %s", got.Took)
		}
		time.Sleep(penalty)
		b.world.set(serverA, answersAddr("198.51.100.1", 0))
		for range 2 {
			if got := b.ask(); got.Addr != "198.51.100.1" {
				b.Errorf("the first server is back, but got %+v", got)
			}
		}
	})
}

func TestSilentServerAtTheBackIsStillAsked(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{serverA: silent, serverB: silent}
	inBed(t, servers, []netip.AddrPort{serverA, serverB}, func(b bed) {
		b.ask() // both time out
		b.world.takeAsked()
		b.world.set(serverB, answersAddr("198.51.100.2", 0))
		if got := b.ask(); got.Addr != "198.51.100.2" {
			b.Errorf("got %+v", got)
		}
		b.ask()
		if asked := b.world.takeAsked(); !slices.Equal(asked, []netip.AddrPort{serverA, serverB, serverB}) {
			b.Errorf("asked %v", asked)
		}
	})
}

func TestNewUpstreamsAnswerLookupsUnderWay(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{serverA: silent, serverB: answersAddr("198.51.100.2", 10*time.Millisecond)}
	for name, first := range map[string][]netip.AddrPort{
		"first server silent":      {serverA},
		"first server unreachable": {serverC},
	} {
		t.Run(name, func(t *testing.T) {
			inBed(t, servers, first, func(b bed) {
				reply := b.start(packQuery(b.T, "example.com.", 1))
				time.Sleep(300 * time.Millisecond)
				b.SetUpstreams([]netip.AddrPort{serverB})
				if got, want := <-reply, (outcome{0, "198.51.100.2", 310 * time.Millisecond}); got != want {
					b.Errorf("got %+v, want %+v", got, want)
				}
			})
		})
	}
}

func TestOldServerMayStillAnswer(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{serverA: answersAddr("198.51.100.1", 50*time.Millisecond), serverB: silent}
	inBed(t, servers, []netip.AddrPort{serverA}, func(b bed) {
		reply := b.start(packQuery(b.T, "example.com.", 1))
		time.Sleep(20 * time.Millisecond)
		b.SetUpstreams([]netip.AddrPort{serverB})
		if got := <-reply; got.Addr != "198.51.100.1" || got.Took != 50*time.Millisecond {
			b.Errorf("got %+v", got)
		}
	})
}

func TestNegativeOfOldServerWaitsForNewOne(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{
		serverA: answersRcode(dns.RcodeNXDomain, 50*time.Millisecond), serverB: answersAddr("198.51.100.2", 200*time.Millisecond),
	}
	inBed(t, servers, []netip.AddrPort{serverA}, func(b bed) {
		reply := b.start(packQuery(b.T, "vpn.example.", 1))
		time.Sleep(20 * time.Millisecond)
		b.SetUpstreams([]netip.AddrPort{serverB})
		if got := <-reply; got.Addr != "198.51.100.2" {
			b.Errorf("got %+v", got)
		}
	})
}

func TestFailureOfOldServerCountsNoMore(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{serverA: silent, serverB: answersRcode(dns.RcodeServFail, 0)}
	inBed(t, servers, []netip.AddrPort{serverB, serverA}, func(b bed) {
		reply := b.start(packQuery(b.T, "example.com.", 1))
		time.Sleep(300 * time.Millisecond)
		b.SetUpstreams([]netip.AddrPort{serverC}) // has no route yet
		time.Sleep(300 * time.Millisecond)
		b.world.set(serverC, answersAddr("198.51.100.3", 0))
		if got, want := <-reply, (outcome{0, "198.51.100.3", 700 * time.Millisecond}); got != want {
			b.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestOldServerDoesNotDriveTheRound lets a try at an old server fail while the
// new ones are asked in their own time.
func TestOldServerDoesNotDriveTheRound(t *testing.T) {
	failLater := func(ctx context.Context, _ []byte) ([]byte, error) {
		return nil, errors.Join(wait(ctx, 200*time.Millisecond), errUnreachable)
	}
	servers := map[netip.AddrPort]behaviour{
		serverA: failLater, serverB: answersAddr("198.51.100.2", 350*time.Millisecond), serverC: answersAddr("198.51.100.3", 0),
	}
	inBed(t, servers, []netip.AddrPort{serverA}, func(b bed) {
		reply := b.start(packQuery(b.T, "example.com.", 1))
		time.Sleep(10 * time.Millisecond)
		b.SetUpstreams([]netip.AddrPort{serverB, serverC})
		if got, want := <-reply, (outcome{0, "198.51.100.2", 360 * time.Millisecond}); got != want {
			b.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestOldServerMayAnswerWhenThereAreNoNewOnes(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{serverA: answersAddr("198.51.100.1", 50*time.Millisecond), serverB: silent}
	inBed(t, servers, []netip.AddrPort{serverA}, func(b bed) {
		reply := b.start(packQuery(b.T, "example.com.", 1))
		time.Sleep(10 * time.Millisecond)
		b.SetUpstreams(nil)
		if got := <-reply; got.Addr != "198.51.100.1" {
			b.Errorf("got %+v", got)
		}
		b.SetUpstreams([]netip.AddrPort{serverB})
		reply = b.start(packQuery(b.T, "example.com.", 1))
		time.Sleep(10 * time.Millisecond)
		b.SetUpstreams(nil)
		if got, want := <-reply, (outcome{dns.RcodeServFail, "", 2 * time.Second}); got != want {
			b.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestSwapStorm replaces the servers 1,000 times under 100 queries a second, by
// slow ones, dead ones and none. Only a query that is sent while there are no
// servers may fail, and then at once.
func TestSwapStorm(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{
		serverA: answersAddr("198.51.100.1", 30*time.Millisecond),
		serverB: answersAddr("198.51.100.2", 80*time.Millisecond),
		serverC: silent,
	}
	lists := [][]netip.AddrPort{{serverA}, {serverB}, {serverC, serverA}, {serverB, serverA}, {}, {serverC, serverB}}
	inBed(t, servers, nil, func(b bed) {
		type sent struct {
			reply <-chan outcome
			empty bool
		}
		var queries []sent
		query := packQuery(b.T, "example.com.", 1)
		for i := range 1000 {
			list := lists[i%len(lists)]
			b.SetUpstreams(list)
			for range 2 {
				queries = append(queries, sent{b.start(query), len(list) == 0})
				time.Sleep(10 * time.Millisecond)
			}
		}
		b.SetUpstreams(lists[0])
		for i, q := range queries {
			got := <-q.reply
			if q.empty && got == (outcome{Rcode: dns.RcodeServFail}) {
				continue
			}
			if got.Rcode != 0 || got.Took > time.Second {
				b.Errorf("query %d: %+v", i, got)
			}
		}
	})
}

func TestSwapStormNeverEmptyNeverFails(t *testing.T) {
	servers := map[netip.AddrPort]behaviour{
		serverA: answersAddr("198.51.100.1", 50*time.Millisecond), serverB: answersAddr("198.51.100.2", 50*time.Millisecond),
	}
	inBed(t, servers, []netip.AddrPort{serverA}, func(b bed) {
		var replies []<-chan outcome
		query := packQuery(b.T, "example.com.", 1)
		for i := range 1000 { // twice in the time of one answer
			b.SetUpstreams([]netip.AddrPort{serverA, serverB}[i%2 : i%2+1])
			replies = append(replies, b.start(query))
			time.Sleep(10 * time.Millisecond)
		}
		for i, r := range replies {
			if got := <-r; got.Rcode != 0 || got.Took > 100*time.Millisecond {
				b.Errorf("query %d: %+v", i, got)
			}
		}
	})
}

func TestTriesOfOneLookupAreBounded(t *testing.T) {
	var mu sync.Mutex
	open, most := 0, 0
	add := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		open += n
		most = max(most, open)
	}
	count := func(ctx context.Context, _ []byte) ([]byte, error) {
		add(1)
		defer add(-1)
		return nil, wait(ctx, time.Hour)
	}
	servers := make(map[netip.AddrPort]behaviour)
	for i := range 100 {
		servers[netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 53)] = count
	}
	inBed(t, servers, nil, func(b bed) {
		b.SetUpstreams([]netip.AddrPort{serverA})
		reply := b.start(packQuery(b.T, "example.com.", 1))
		for i := range 100 {
			time.Sleep(10 * time.Millisecond)
			b.SetUpstreams([]netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 53)})
		}
		<-reply
		if most > maxTries+1 { // a dropped try may end a moment after its successor began
			b.Errorf("%d tries open at once", most)
		}
	})
}

func TestEveryTryHasItsOwnIdentifier(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: answersAddr("198.51.100.1", 0)}, []netip.AddrPort{serverA}, func(b bed) {
		const n = 2000
		for range n {
			b.ask()
		}
		distinct := make(map[uint16]bool)
		var low, high int
		for _, id := range b.world.ids {
			distinct[id] = true
			if id < 1<<15 {
				low++
			} else {
				high++
			}
		}
		// About 30 of 2,000 repeat by chance; halves differ by 45 (one sigma).
		if len(distinct) < n-100 || low < n/2-300 || high < n/2-300 {
			b.Errorf("%d distinct, %d low, %d high", len(distinct), low, high)
		}
	})
}
