package hostsock

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
)

var loopbacks = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

// recorder is a Handler that keeps what it gets.
type recorder struct {
	mu       sync.Mutex
	messages []Message
	reports  []Report
}

func (r *recorder) Receive(m Message) {
	m.Payload = bytes.Clone(m.Payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, m)
}

func (r *recorder) Report(rep Report) {
	rep.Payload = bytes.Clone(rep.Payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, rep)
}

func (r *recorder) numbers() (messages, reports int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.messages), len(r.reports)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 10 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func newPoller(t *testing.T) *Poller {
	t.Helper()
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func udp(t *testing.T, a netip.Addr) *Socket {
	t.Helper()
	s, err := OpenUDP(a, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestSendAndReceive(t *testing.T) {
	p := newPoller(t)
	for _, a := range loopbacks {
		from, to := udp(t, a), udp(t, a)
		var r recorder
		if err := p.Add(to, &r); err != nil {
			t.Fatal(err)
		}
		var w Writer
		payload := bytes.Repeat([]byte("0123456789"), 130)
		for _, segment := range []int{0, 100, 99, 1300, 2000} {
			pk := Packet{To: to.LocalAddr(), Segment: segment, Payload: payload}
			if n, err := w.Send(from, pk); n != pk.Datagrams() || err != nil {
				t.Fatalf("segment %d: sent %d of %d, %v", segment, n, pk.Datagrams(), err)
			}
		}
		// The same without the kernel's help.
		from.loopFrom.Store(0)
		if n, err := w.Send(from, Packet{To: to.LocalAddr(), Segment: 13, Payload: payload}); n != 100 || err != nil {
			t.Fatalf("loop: sent %d, %v", n, err)
		}
		want := bytes.Repeat(payload, 6)
		var got []byte
		eventually(t, "datagrams", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			got = nil
			for _, m := range r.messages {
				if m.From != from.LocalAddr() {
					t.Fatalf("from %v, want %v", m.From, from.LocalAddr())
				}
				got = append(got, m.Payload...)
			}
			return len(got) == len(want)
		})
		if !bytes.Equal(got, want) {
			t.Error("bytes differ")
		}
	}
}

func TestReportOfClosedPort(t *testing.T) {
	p := newPoller(t)
	for _, a := range loopbacks {
		s, dead := udp(t, a), udp(t, a)
		var r recorder
		if err := p.Add(s, &r); err != nil {
			t.Fatal(err)
		}
		dead.Close()
		var w Writer
		if _, err := w.Send(s, Packet{To: dead.LocalAddr(), Payload: []byte("hello")}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "report", func() bool { _, n := r.numbers(); return n == 1 })
		rep := r.reports[0]
		if rep.Kind != icmp.PortUnreachable || rep.Target != dead.LocalAddr() || rep.Offender != a || string(rep.Payload) != "hello" {
			t.Errorf("%+v", rep)
		}
	}
}

func TestReportsAndDatagramsKeepComing(t *testing.T) {
	p := newPoller(t)
	s, dead, live := udp(t, loopbacks[0]), udp(t, loopbacks[0]), udp(t, loopbacks[0])
	var r recorder
	if err := p.Add(s, &r); err != nil {
		t.Fatal(err)
	}
	dead.Close()
	var w, back Writer
	for i := range 200 {
		if _, err := w.Send(s, Packet{To: dead.LocalAddr(), Payload: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if _, err := back.Send(live, Packet{To: s.LocalAddr(), Payload: []byte("y")}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "both", func() bool { m, rs := r.numbers(); return m == i+1 && rs == i+1 })
	}
}

func TestOpenErrorsKeepTheErrno(t *testing.T) {
	s := udp(t, loopbacks[0])
	if _, err := OpenUDP(loopbacks[0], s.LocalAddr().Port()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("port in use: %v", err)
	}
	if _, err := OpenUDP(netip.MustParseAddr("192.0.2.1"), 0); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("foreign address: %v", err)
	}
	if _, err := OpenPing(netip.IPv4Unspecified()); !errors.Is(err, syscall.EACCES) {
		t.Errorf("ping in a new namespace: %v", err)
	}
}

func TestIPv6SocketLeavesIPv4Alone(t *testing.T) {
	s := udp(t, netip.IPv6Unspecified())
	if _, err := OpenUDP(netip.IPv4Unspecified(), s.LocalAddr().Port()); err != nil {
		t.Errorf("the same port over IPv4: %v", err)
	}
}

func TestSendAfterClose(t *testing.T) {
	s := udp(t, loopbacks[0])
	to := s.LocalAddr()
	s.Close()
	s.Close()
	var w Writer
	if _, err := w.Send(s, Packet{To: to, Payload: []byte("x")}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestCloseWhileReceiving(t *testing.T) {
	before := runtime.NumGoroutine()
	p := newPoller(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var w Writer
			for range 200 {
				s, err := OpenUDP(loopbacks[0], 0)
				if err != nil {
					t.Error(err)
					return
				}
				var r recorder
				if err := p.Add(s, &r); err != nil {
					t.Error(err)
				}
				for range 3 {
					_, _ = w.Send(s, Packet{To: s.LocalAddr(), Payload: []byte("x")})
				}
				s.Close()
			}
		})
	}
	wg.Wait()
	p.mu.Lock()
	n := len(p.entries)
	p.mu.Unlock()
	if n != 0 {
		t.Errorf("%d entries left", n)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "end of goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

func TestParseReportOfGarbage(t *testing.T) {
	for _, b := range [][]byte{nil, {1}, make([]byte, 15), make([]byte, 16), make([]byte, 64), bytes.Repeat([]byte{0xff}, 64)} {
		if r := parseReport(b); r.Kind != 0 {
			t.Errorf("%x: %+v", b, r)
		}
		var m Message
		if m.readControl(b); m.Segment != 0 || m.Local.IsValid() {
			t.Errorf("%x: %+v", b, m)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	var c controls
	data := (*[extendedErrLen + 16]byte)(c.add(unix.IPPROTO_IP, unix.IP_RECVERR, extendedErrLen+16))
	data[originAt], data[typeAt], data[codeAt] = unix.SO_EE_ORIGIN_ICMP, 3, 3
	f.Add(unsafe.Slice((*byte)(unsafe.Pointer(&c.buf)), c.n))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseReport(b)
		parseExtended(append(make([]byte, extendedErrLen), b...))
		new(Message).readControl(b)
	})
}

func TestPeers(t *testing.T) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) }
	p := Peers{Max: 21}
	if p.Has(netip.Addr{}) {
		t.Error("has nothing's address")
	}
	for i := range 1000 {
		p.Add(addr(i))
		p.Add(addr(0)) // sent to all the time
		if !p.Has(addr(i)) || !p.Has(addr(0)) {
			t.Fatalf("%d: the last or the busy one was forgotten", i)
		}
		if i >= 9 && !p.Has(addr(i-8)) {
			t.Fatalf("%d: a recent one was forgotten", i)
		}
		if n := len(p.young) + len(p.old); n > p.Max {
			t.Fatalf("%d remembered", n)
		}
	}
	if p.Has(addr(1)) {
		t.Error("an old one is still remembered")
	}
}

func TestSendDoesNotAllocate(t *testing.T) {
	s := udp(t, loopbacks[0])
	var w Writer
	p := Packet{To: s.LocalAddr(), TTL: 3, Segment: 10, Payload: make([]byte, 100)}
	if n := testing.AllocsPerRun(100, func() { _, _ = w.Send(s, p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
