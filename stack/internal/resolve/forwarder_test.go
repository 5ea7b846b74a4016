package resolve

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/internal/flow"
)

func ownNames(name string) ([]netip.Addr, bool) {
	switch name {
	case "gateway.postern.internal.", "host.docker.internal.":
		return []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")}, true
	}
	return nil, false
}

func TestOwnNamesAreNeverForwarded(t *testing.T) {
	w := newWorld(nil)
	f := New(Config{Local: ownNames, Exchange: w.exchange, Upstreams: []netip.AddrPort{serverA}})
	defer f.Close()
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		addr  string
	}{
		{"Gateway.Postern.INTERNAL.", mdns.TypeA, 0, "10.0.2.2"},
		{"gateway.postern.internal.", mdns.TypeAAAA, 0, "fd00::2"},
		{"host.docker.internal.", mdns.TypeA, 0, "10.0.2.2"},
		{"host.docker.internal.", mdns.TypeMX, 0, ""},
		{"host.docker.internal.", mdns.TypeAXFR, 0, ""},
		{"other.postern.internal.", mdns.TypeA, dns.RcodeNXDomain, ""},
		{"a.gateway.postern.internal.", mdns.TypeA, dns.RcodeNXDomain, ""},
		{"postern.internal.", mdns.TypeSOA, dns.RcodeNXDomain, ""},
		{"example.com.", mdns.TypeAXFR, dns.RcodeRefused, ""},
		{"example.com.", mdns.TypeIXFR, dns.RcodeRefused, ""},
	} {
		q := packQuery(t, c.name, c.qtype)
		replies := make(chan []byte, 1)
		f.Query(q, func(r []byte) { replies <- r })
		var m mdns.Msg
		if err := m.Unpack(<-replies); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		addr := ""
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *mdns.A:
				addr = rr.A.String()
			case *mdns.AAAA:
				addr = rr.AAAA.String()
			}
		}
		if m.Rcode != c.rcode || addr != c.addr || m.Authoritative != (c.rcode != dns.RcodeRefused) {
			t.Errorf("%s %d: %v", c.name, c.qtype, &m)
		}
	}
	if asked := w.takeAsked(); len(asked) != 0 {
		t.Errorf("%d queries were forwarded", len(asked))
	}
}

func TestMalformedQueries(t *testing.T) {
	good := packQuery(t, "example.com.", mdns.TypeA)
	notify := slices.Clone(good)
	notify[2] = 4 << 3
	response := slices.Clone(good)
	response[2] |= 0x80
	inBed(t, map[netip.AddrPort]behaviour{serverA: answersAddr("198.51.100.1", 0)}, []netip.AddrPort{serverA}, func(b bed) {
		for name, c := range map[string]struct {
			msg   []byte
			rcode int
		}{
			"empty":    {nil, -1},
			"runt":     {good[:11], -1},
			"response": {response, -1},
			"cut":      {good[:20], dns.RcodeFormErr},
			"notify":   {notify, dns.RcodeNotImp},
			"huge":     {append(slices.Clone(good), make([]byte, maxQuery)...), dns.RcodeFormErr},
		} {
			var got []byte
			b.Query(c.msg, func(r []byte) { got = r })
			synctest.Wait()
			if rcode := dns.Rcode(got); rcode != c.rcode {
				b.Errorf("%s: rcode %d, want %d", name, rcode, c.rcode)
			}
		}
		if asked := b.world.takeAsked(); len(asked) != 0 {
			b.Errorf("%d malformed queries were forwarded", len(asked))
		}
	})
}

func TestQueriesAreBoundedAndCounted(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: silent}, []netip.AddrPort{serverA}, func(b bed) {
		query := packQuery(b.T, "example.com.", 1)
		for range flow.MaxDNS {
			b.start(query)
		}
		b.Query(query, func([]byte) { b.Error("a query above the limit got a reply") })
		if n := b.counters.Load(flow.DNSRefusedLimit); n != 1 {
			b.Errorf("counted %d refusals", n)
		}
		time.Sleep(6 * time.Second) // all lookups have ended
		b.world.set(serverA, answersAddr("198.51.100.1", 0))
		if got := b.ask(); got.Addr != "198.51.100.1" {
			b.Errorf("after the flood: %+v", got)
		}
		if n := b.counters.Load(flow.DNSQueries); n != flow.MaxDNS+1 {
			b.Errorf("counted %d queries", n)
		}
	})
}

func TestLongAnswerIsTruncatedForUDP(t *testing.T) {
	long := func(_ context.Context, query []byte) ([]byte, error) {
		return append(dns.AnswerAddrs(query, nil, 0), make([]byte, 3000)...), nil
	}
	inBed(t, map[netip.AddrPort]behaviour{serverA: long}, []netip.AddrPort{serverA}, func(b bed) {
		for size, whole := range map[uint16]bool{0: false, 1232: false, 3028: false, 3029: false, 4096: true} {
			m := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeTXT)
			if size > 0 {
				m.SetEdns0(size, false)
			}
			query, err := m.Pack()
			if err != nil {
				b.Fatal(err)
			}
			var got []byte
			b.Query(query, func(r []byte) { got = r })
			synctest.Wait()
			limit := max(int(size), dns.MinUDP)
			if tc := got[2]&2 != 0; tc == whole || len(got) > limit || (len(got) > 3000) != whole {
				b.Errorf("size %d: %d bytes, TC %v", size, len(got), tc)
			}
		}
	})
}

func TestQueryIsCopied(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: answersAddr("198.51.100.1", time.Millisecond)}, []netip.AddrPort{serverA}, func(b bed) {
		query := packQuery(b.T, "example.com.", 1)
		msg := slices.Clone(query)
		var got []byte
		b.Query(msg, func(r []byte) { got = r })
		clear(msg)
		time.Sleep(time.Second)
		synctest.Wait()
		if !dns.Matches(query, got) || !bytes.Equal(msg, make([]byte, len(msg))) {
			b.Errorf("reply %x", got)
		}
	})
}

func TestCloseEndsLookupsWithoutReply(t *testing.T) {
	inBed(t, map[netip.AddrPort]behaviour{serverA: silent, serverB: answersRcode(dns.RcodeServFail, 0)}, []netip.AddrPort{serverB, serverA}, func(b bed) {
		begun := time.Now()
		query := packQuery(b.T, "example.com.", 1)
		for range 100 {
			b.Query(query, func([]byte) { b.Error("a reply after Close") })
		}
		synctest.Wait()
		b.Close()
		b.Close()
		b.Query(query, func([]byte) { b.Error("a reply to a query after Close") })
		if took := time.Since(begun); took != 0 {
			b.Errorf("Close took %s", took)
		}
		b.SetUpstreams(nil)
	})
}

func TestCloseWaitsForTries(t *testing.T) {
	lingers := func(ctx context.Context, _ []byte) ([]byte, error) {
		<-ctx.Done()
		time.Sleep(time.Second)
		return nil, ctx.Err()
	}
	inBed(t, map[netip.AddrPort]behaviour{serverA: lingers}, []netip.AddrPort{serverA}, func(b bed) {
		b.Query(packQuery(b.T, "example.com.", 1), func([]byte) { b.Error("a reply after Close") })
		synctest.Wait()
		begun := time.Now()
		b.Close()
		if took := time.Since(begun); took != time.Second {
			b.Errorf("Close took %s, its try 1s", took)
		}
	})
}

func TestUpstreamsAreCleaned(t *testing.T) {
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.1]:53")
	var many []netip.AddrPort
	for i := range 50 {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 53))
	}
	in := append([]netip.AddrPort{mapped, serverA, {}, netip.AddrPortFrom(serverB.Addr(), 0), serverB}, many...)
	var u upstreams
	if !u.set(in) {
		t.Error("the first list is not new")
	}
	list, changed := u.order(time.Now())
	if len(list) != dns.MaxNameservers || list[0] != serverA || list[1] != serverB || list[2] != many[0] {
		t.Errorf("got %v", list)
	}
	if u.set(in) {
		t.Error("the same list is new")
	}
	select {
	case <-changed:
		t.Error("the same list was announced as a change")
	default:
	}
	if !u.set(nil) {
		t.Error("the empty list is not new")
	}
	<-changed
	u.timedOut(serverA, time.Now())
	if len(u.health) != 0 {
		t.Error("the health of a server that is not listed was kept")
	}
}
