package flow

import (
	"net/netip"
	"testing"
)

func key(p Proto, port uint16, target string) Key {
	return Key{p, netip.AddrPortFrom(netip.MustParseAddr("10.0.2.100"), port), netip.MustParseAddrPort(target)}
}

func TestAdmitOnceAndRelease(t *testing.T) {
	tb := NewTable()
	k := key(TCP, 1, "192.0.2.1:80")
	f := tb.AdmitDial(k, func() {})
	if f == nil || f.State() != Pending {
		t.Fatalf("first admission: %v", f)
	}
	if tb.AdmitDial(k, func() {}) != nil {
		t.Error("the same key was admitted twice")
	}
	tb.Opened(f)
	if f.State() != Open || tb.Len(TCP) != 1 || tb.dials.Len() != 0 || len(tb.pending) != 0 {
		t.Errorf("after Opened: state %v, len %d, dials %d, pending %v", f.State(), tb.Len(TCP), tb.dials.Len(), tb.pending)
	}
	tb.Release(f)
	tb.Release(f)
	if tb.Len(TCP) != 0 || len(tb.Flows()) != 0 {
		t.Errorf("after Release: len %d, flows %v", tb.Len(TCP), tb.Flows())
	}
	if tb.AdmitDial(k, func() {}) == nil {
		t.Error("the key of a released flow was refused")
	}
}

func TestPendingIsBoundedByDestination(t *testing.T) {
	tb := NewTable()
	cancel := func() { t.Error("a dial was cancelled") }
	var last *Flow
	for i := range MaxPendingPerDestination {
		if last = tb.AdmitDial(key(TCP, uint16(i), "192.0.2.1:80"), cancel); last == nil {
			t.Fatalf("dial %d refused", i)
		}
	}
	if tb.AdmitDial(key(TCP, 60000, "192.0.2.1:80"), cancel) != nil {
		t.Error("destination limit not held")
	}
	if tb.Counters.Load(TCPRefusedDestination) != 1 {
		t.Error("the refusal was not counted")
	}
	if tb.AdmitDial(key(TCP, 60001, "192.0.2.2:80"), cancel) == nil {
		t.Error("another destination was refused")
	}
	tb.Release(last)
	if tb.AdmitDial(key(TCP, 60000, "192.0.2.1:80"), cancel) == nil {
		t.Error("a released dial did not give its place back")
	}
}

func TestOldestDialGivesWay(t *testing.T) {
	tb := NewTable()
	var cancelled []int
	admit := func(i int) *Flow {
		target := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(i))
		return tb.AdmitDial(Key{TCP, netip.MustParseAddrPort("10.0.2.100:7"), target}, func() { cancelled = append(cancelled, i) })
	}
	first := admit(0)
	tb.Opened(admit(1)) // no dial any more: it cannot give way
	for i := 2; i <= MaxPendingTCP; i++ {
		if admit(i) == nil {
			t.Fatalf("dial %d refused", i)
		}
	}
	if len(cancelled) != 0 {
		t.Fatalf("cancelled %v before the limit", cancelled)
	}
	if admit(60000) == nil || admit(60001) == nil {
		t.Error("a newcomer was refused")
	}
	if len(cancelled) != 2 || cancelled[0] != 0 || cancelled[1] != 2 || tb.Counters.Load(TCPEvicted) != 2 {
		t.Errorf("cancelled %v, counted %d; want the oldest pending, 0 and 2", cancelled, tb.Counters.Load(TCPEvicted))
	}
	if tb.dials.Len() != MaxPendingTCP {
		t.Errorf("%d dials, want %d", tb.dials.Len(), MaxPendingTCP)
	}
	tb.Release(first) // as its goroutine will
	if tb.Len(TCP) != MaxPendingTCP+1 {
		t.Errorf("%d flows after a second release, want %d", tb.Len(TCP), MaxPendingTCP+1)
	}
}

func TestUDPStartsOpenAndIsBounded(t *testing.T) {
	tb := NewTable()
	for i := range MaxUDP {
		if f := tb.Admit(Key{Proto: UDP, Initiating: netip.AddrPortFrom(netip.MustParseAddr("10.0.2.100"), uint16(i))}); f == nil || f.State() != Open {
			t.Fatalf("mapping %d: %v", i, f)
		}
	}
	if tb.Admit(Key{Proto: UDP, Initiating: netip.MustParseAddrPort("10.0.2.100:60000")}) != nil || tb.Counters.Load(UDPRefusedLimit) != 1 {
		t.Error("limit on UDP mappings not held or not counted")
	}
}

func TestCounterNamesAreCompleteAndUnique(t *testing.T) {
	seen := map[string]Counter{}
	for c := Counter(0); c < numCounters; c++ {
		if c.String() == "" {
			t.Errorf("counter %d has no name", c)
		}
		if prev, ok := seen[c.String()]; ok {
			t.Errorf("counters %d and %d are both %q", prev, c, c.String())
		}
		seen[c.String()] = c
	}
	var cs Counters
	cs.Inc(DropRunt)
	cs.Add(FramesIn, 3)
	if s := cs.Snapshot(); len(s) != 2 || s["drop_runt"] != 1 || s["frames_in"] != 3 {
		t.Errorf("snapshot %v", s)
	}
}

func TestPath(t *testing.T) {
	tb := NewTable()
	k := Key{Proto: TCP, Initiating: netip.MustParseAddrPort("10.0.2.100:1"), Target: netip.MustParseAddrPort("192.0.2.1:2")}
	if tb.Has(k) {
		t.Error("an empty table has the key")
	}
	f := tb.AdmitDial(k, func() {})
	if !tb.Has(k) || f.Path() != Universal || f.Path().String() != "universal" {
		t.Errorf("in the table: %v, path %v", tb.Has(k), f.Path())
	}
	f.SetPath(Express)
	if f.Path() != Express || f.Path().String() != "express" {
		t.Errorf("path %v, want express", f.Path())
	}
	tb.Release(f)
	if tb.Has(k) {
		t.Error("a released flow is in the table")
	}
}
