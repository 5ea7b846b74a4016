package admission

import (
	"net/netip"
	"sync"
	"testing"
)

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name                string
		total, client, port int
		anonymous           bool
		want                Verdict
	}{
		{"nothing there", 0, 0, 0, false, Admit},
		{"one client has all there is", 599, 599, 599, false, Admit},
		{"one client at three quarters", 600, 600, 600, false, Refuse},
		{"another client of that port", 600, 0, 600, false, Admit},
		{"another client just below its share", 650, 99, 600, false, Admit},
		{"another client at its share", 650, 100, 600, false, Refuse},
		{"that port at seven eighths", 700, 0, 600, false, Refuse},
		{"another port at seven eighths", 700, 0, 0, false, Admit},
		{"another port, greedy client", 700, 600, 0, false, Refuse},
		{"the last place", 799, 0, 99, false, Admit},
		{"the last place, port at its share", 799, 0, 100, false, Refuse},
		{"full", 800, 0, 0, false, Wait},
		{"over", 801, 0, 0, false, Wait},
		{"loopback below three quarters", 599, 0, 599, true, Admit},
		{"loopback, busy port", 600, 0, 600, true, Refuse},
		{"loopback, other port", 600, 0, 99, true, Admit},
		{"loopback, the last place", 799, 0, 99, true, Admit},
		{"loopback, full", 800, 0, 0, true, Wait},
	} {
		l := Load{Capacity: 800, Total: c.total, Client: c.client, Port: c.port, Identified: !c.anonymous}
		if got := Decide(l); got != c.want {
			t.Errorf("%s: %d, want %d (%+v)", c.name, got, c.want, l)
		}
	}
}

// TestTinyCapacity: the fractions of small numbers leave a place for everyone.
func TestTinyCapacity(t *testing.T) {
	for capacity := 1; capacity <= 16; capacity++ {
		for total := range capacity {
			if got := Decide(Load{Capacity: capacity, Total: total, Identified: true}); got != Admit {
				t.Errorf("capacity %d, %d taken: a newcomer gets %d", capacity, total, got)
			}
		}
		if got := Decide(Load{Capacity: capacity, Total: capacity, Identified: true}); got != Wait {
			t.Errorf("capacity %d, all taken: %d, want Wait", capacity, got)
		}
	}
}

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		limit   uint64
		reserve int
		want    int
	}{
		{64, 32, 16}, {64, 64, 1}, {64, 100, 1}, {65, 64, 1}, {1024, 128, 448}, {1 << 20, 1024, 16000}, {1<<64 - 1, 1024, 16000},
	} {
		if got := Capacity(16000, c.limit, c.reserve); got != c.want {
			t.Errorf("limit %d, reserve %d: %d, want %d", c.limit, c.reserve, got, c.want)
		}
	}
}

func TestKeyOf(t *testing.T) {
	for _, c := range []struct {
		a, b       string
		same       bool
		identified bool
	}{
		{"192.0.2.1", "192.0.2.2", false, true},
		{"192.0.2.1", "::ffff:192.0.2.1", true, true},
		{"2001:db8::1", "2001:db8::2:3:4", true, true},
		{"2001:db8::1", "2001:db8:0:1::1", false, true},
		{"fe80::1%eth0", "fe80::1%eth1", true, true},
		{"127.0.0.1", "::1", true, false},
		{"127.0.0.1", "127.9.9.9", true, false},
	} {
		a, b := KeyOf(netip.MustParseAddr(c.a)), KeyOf(netip.MustParseAddr(c.b))
		if (a == b) != c.same || a.Identified() != c.identified {
			t.Errorf("%s, %s: same %v, identified %v", c.a, c.b, a == b, a.Identified())
		}
	}
	if KeyOf(netip.Addr{}).Identified() {
		t.Error("no address identifies a client")
	}
}

// fill claims places until one is not given.
func fill(tb *Table, client string, port int) (n int) {
	for tb.Reserve() && tb.Claim(KeyOf(netip.MustParseAddr(client)), port) {
		n++
	}
	return n
}

func TestTableSharesOut(t *testing.T) {
	tb := NewTable(800)
	for _, step := range []struct {
		what, client string
		port, want   int
	}{
		{"a greedy client", "192.0.2.1", 1, 600},
		{"and again on another port", "192.0.2.1", 2, 0},
		{"another on the same port", "192.0.2.2", 1, 100},
		{"a third one there", "192.0.2.3", 1, 0},
		{"the third one elsewhere", "192.0.2.3", 2, 100},
		{"a fourth one", "192.0.2.4", 3, 0},
	} {
		if got := fill(tb, step.client, step.port); got != step.want {
			t.Errorf("%s got %d places, want %d", step.what, got, step.want)
		}
	}
	if tb.Reserve() || tb.Len() != 800 || tb.Capacity() != 800 {
		t.Errorf("%d of %d taken, and there is room", tb.Len(), tb.Capacity())
	}
	for range 600 {
		tb.Release(KeyOf(netip.MustParseAddr("192.0.2.1")), 1)
	}
	for range 100 {
		tb.Release(KeyOf(netip.MustParseAddr("192.0.2.2")), 1)
		tb.Release(KeyOf(netip.MustParseAddr("192.0.2.3")), 2)
	}
	if tb.Len() != 0 || len(tb.clients) != 0 || len(tb.ports) != 0 {
		t.Errorf("after all has ended: %d places, %d clients, %d ports", tb.Len(), len(tb.clients), len(tb.ports))
	}
}

func TestTableCancel(t *testing.T) {
	tb := NewTable(1)
	if !tb.Reserve() || tb.Reserve() {
		t.Fatal("one place was not one place")
	}
	tb.Cancel()
	if !tb.Reserve() || !tb.Claim(Key{}, 7) || tb.Reserve() {
		t.Fatal("a cancelled place is not free")
	}
	tb.Release(Key{}, 7)
	if tb.Len() != 0 {
		t.Errorf("%d places are taken", tb.Len())
	}
}

func TestTableConcurrent(t *testing.T) {
	tb := NewTable(64)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			key := KeyOf(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			for range 2000 {
				if tb.Reserve() && tb.Claim(key, i) {
					tb.Release(key, i)
				}
			}
		})
	}
	wg.Wait()
	if tb.Len() != 0 || len(tb.clients) != 0 || len(tb.ports) != 0 {
		t.Errorf("%d places, %d clients, %d ports are left", tb.Len(), len(tb.clients), len(tb.ports))
	}
}
