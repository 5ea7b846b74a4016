package netstack

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
)

// The table of who sees whom: a server in the container sees the client's own
// address, and the gateway's for clients on the host's loopback.
func TestUDPServersSeeWhoTheClientIs(t *testing.T) {
	for _, kind := range guest.Kinds {
		for _, mtu := range []int{1500, stack.MaxMTU} {
			t.Run(fmt.Sprintf("%s/mtu %d", kind, mtu), func(t *testing.T) {
				w := newUDPWorld(t, kind, mtu, nil)
				for _, c := range []struct{ at, seen netip.Addr }{
					{udpHost4, udpHost4}, {udpHost6, udpHost6},
					{netip.MustParseAddr("127.0.0.1"), udpPlan.Gateway4}, {netip.IPv6Loopback(), udpPlan.Gateway6},
				} {
					server := udpPlan.Container4
					if c.at.Is6() {
						server = udpPlan.Container6
					}
					s := w.listen(t, netip.AddrPortFrom(server, 0))
					p := dialUDP(t, netip.AddrPortFrom(c.at, 0), w.publish(t, 1, c.at, netip.AddrPortFrom(netip.Addr{}, s.addr.Port())))
					for i, size := range []int{5, 0, 1400, 9000, 65000} {
						b := bytes.Repeat([]byte{byte(i + 1)}, size)
						p.send(t, b)
						got, seen := s.read(t)
						if !bytes.Equal(got, b) || seen != netip.AddrPortFrom(c.seen, p.local().Port()) {
							t.Fatalf("%v: the server got %d of %d bytes from %v", c.at, len(got), size, seen)
						}
						s.answer(t, b, seen)
						if got, _ := p.read(t); !bytes.Equal(got, b) {
							t.Fatalf("%v: %d of %d bytes came back", c.at, len(got), size)
						}
					}
				}
			})
		}
	}
}

func TestUDPTrainsBothWays(t *testing.T) {
	for _, mtu := range []int{1500, stack.MaxMTU} {
		t.Run(fmt.Sprint("mtu ", mtu), func(t *testing.T) { testUDPTrains(t, mtu) })
	}
}

func testUDPTrains(t *testing.T, mtu int) {
	w := newUDPWorld(t, guest.Kinds[0], mtu, nil)
	s := w.listen(t, netip.AddrPortFrom(udpPlan.Container4, 0))
	p := dialUDP(t, netip.AddrPortFrom(udpHost4, 0), w.publish(t, 1, udpHost4, s.addr))
	const size, n = 1200, 40
	payload := make([]byte, size*(n-1)+99)
	for i := range payload {
		payload[i] = byte(i / size)
	}
	p.sendTrain(t, payload, size)
	var client netip.AddrPort
	for cut := payload; len(cut) > 0; cut = cut[min(size, len(cut)):] {
		var got []byte
		if got, client = s.read(t); !bytes.Equal(got, cut[:min(size, len(cut))]) {
			t.Fatalf("%d bytes, want %d", len(got), min(size, len(cut)))
		}
	}
	answer := udpSocket{s.UDPConn, client}
	answer.sendTrain(t, payload, size)
	for cut := payload; len(cut) > 0; cut = cut[min(size, len(cut)):] {
		if got, _ := p.read(t); !bytes.Equal(got, cut[:min(size, len(cut))]) {
			t.Fatalf("%d bytes back, want %d", len(got), min(size, len(cut)))
		}
	}
}

// Datagrams that the container sends on its own account go out as without the driver.
func TestUDPOfOthersIsLeftAlone(t *testing.T) {
	w := newUDPWorld(t, guest.Kinds[0], 1500, nil)
	outside := listenUDP(t, netip.AddrPortFrom(udpHost4, 0))
	s := w.listen(t, netip.AddrPortFrom(udpPlan.Container4, 0))
	s.answer(t, []byte("question"), outside.addr)
	got, from := outside.read(t)
	if string(got) != "question" || from.Addr() != udpHost4 {
		t.Fatalf("%q from %v", got, from)
	}
	outside.answer(t, []byte("answer"), from)
	if got, from := s.read(t); string(got) != "answer" || from != outside.addr {
		t.Errorf("%q from %v", got, from)
	}
}

func TestUDPOnLoopbackIsRefused(t *testing.T) {
	w := newUDPWorld(t, guest.Kinds[0], 1500, nil)
	target := netip.MustParseAddrPort("127.0.0.1:53")
	l := udpListener(t, 7, netip.MustParseAddr("127.0.0.1"), target)
	if err := w.udp.Open(l); !errors.Is(err, os.ErrInvalid) {
		t.Error(err)
	}
	if err := l.File.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the socket was not taken over: %v", err)
	}
}

func TestUDPOnLoopbackGoesToTheOtherDriver(t *testing.T) {
	target := netip.MustParseAddrPort("127.0.0.1:53")
	other := &fakeLoopback{counters: map[string]uint64{"published_udp_flows": 2}}
	w := newUDPWorld(t, guest.Kinds[0], 1500, func(c *UDPConfig) { c.Loopback = other })
	if err := w.udp.Open(udpListener(t, 7, netip.MustParseAddr("127.0.0.1"), target)); err != nil {
		t.Fatal(err)
	}
	s := w.listen(t, netip.AddrPortFrom(udpPlan.Container4, 0))
	s.answer(t, []byte("from a wildcard socket"), netip.AddrPortFrom(udpHost4, 4444))
	stacktest.Eventually(t, "the answer", func() bool { return other.answers() == 1 })
	if st := w.udp.Status(); st.UDP != 3 || st.Counters["published_udp_flows"] != 2 {
		t.Errorf("%+v", st)
	}
	w.udp.Shut(7)
	w.udp.Close()
	w.udp.Close()
	if fmt.Sprint(other.calls) != "[open 7 shut 7 close close]" {
		t.Errorf("%v", other.calls)
	}
}

// fakeLoopback is a driver that writes down what it is asked.
type fakeLoopback struct {
	counters map[string]uint64
	calls    []string

	mu        sync.Mutex
	published int
}

func (f *fakeLoopback) Open(l portdriver.Listener) error {
	f.calls = append(f.calls, fmt.Sprint("open ", l.Rule))
	return l.File.Close()
}

func (f *fakeLoopback) Shut(rule int) { f.calls = append(f.calls, fmt.Sprint("shut ", rule)) }
func (f *fakeLoopback) Close()        { f.calls = append(f.calls, "close") }

func (f *fakeLoopback) Status() portdriver.Status {
	return portdriver.Status{UDP: 3, Counters: f.counters}
}

func (f *fakeLoopback) Published(_, to netip.AddrPort, _ []byte, _ int) bool {
	if to != netip.AddrPortFrom(udpHost4, 4444) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.published++
	return true
}

func (f *fakeLoopback) answers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.published
}

// BenchmarkPublishedUDP sends datagrams of 1,400 bytes as fast as the client can,
// one by one, through a TAP to a server that reads one by one. Gb/s counts what the
// server got; lost is the part that it did not.
func BenchmarkPublishedUDP(b *testing.B) {
	for _, mtu := range []int{1500, stack.MaxMTU} {
		b.Run(fmt.Sprint("mtu ", mtu), func(b *testing.B) {
			w := newUDPWorld(b, guest.Kinds[0], mtu, nil)
			s := w.listen(b, netip.AddrPortFrom(udpPlan.Container4, 0))
			p := dialUDP(b, netip.AddrPortFrom(udpHost4, 0), w.publish(b, 1, udpHost4, s.addr))
			var got int
			var last time.Time
			_ = s.SetReadDeadline(time.Time{})
			var reader sync.WaitGroup
			reader.Go(func() {
				buf := make([]byte, 1<<16)
				for {
					n, err := s.UDPConn.Read(buf)
					if err != nil {
						return
					}
					if got += n; got/1400%64 == 0 {
						last = time.Now()
					}
				}
			})
			payload := make([]byte, 1400)
			b.SetBytes(1400)
			b.ResetTimer()
			start := time.Now()
			for range b.N {
				_, _ = p.Write(payload)
			}
			b.StopTimer()
			_ = s.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // for what is under way
			reader.Wait()
			if elapsed := last.Sub(start).Seconds(); elapsed > 0 {
				b.ReportMetric(float64(got)*8/elapsed/1e9, "Gb/s")
			}
			b.ReportMetric(1-float64(got/1400)/float64(b.N), "lost")
		})
	}
}

// BenchmarkUDPRoundTrip measures a datagram there and back.
func BenchmarkUDPRoundTrip(b *testing.B) {
	w := newUDPWorld(b, guest.Kinds[0], 1500, nil)
	s := w.listen(b, netip.AddrPortFrom(udpPlan.Container4, 0))
	p := dialUDP(b, netip.AddrPortFrom(udpHost4, 0), w.publish(b, 1, udpHost4, s.addr))
	var echo sync.WaitGroup
	echo.Go(func() {
		buf := make([]byte, 1500)
		_ = s.SetReadDeadline(time.Time{})
		for {
			n, from, err := s.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = s.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	buf := make([]byte, 1500)
	_ = p.SetReadDeadline(time.Now().Add(time.Minute))
	b.ResetTimer()
	for range b.N {
		if _, err := p.Write(buf[:100]); err != nil {
			b.Fatal(err)
		}
		if _, err := p.UDPConn.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = s.Close()
	echo.Wait()
}

// udpSocket is a socket of the host or of the container.
type udpSocket struct {
	*net.UDPConn
	addr netip.AddrPort
}

func listenUDP(t testing.TB, at netip.AddrPort) udpSocket {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	return adoptUDP(t, conn)
}

func adoptUDP(t testing.TB, conn *net.UDPConn) udpSocket {
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	s := udpSocket{UDPConn: conn}
	s.addr = s.local()
	return s
}

func (s udpSocket) local() netip.AddrPort {
	a := s.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func dialUDP(t testing.TB, from, to netip.AddrPort) udpSocket {
	t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	return adoptUDP(t, conn)
}

func (s udpSocket) read(t testing.TB) ([]byte, netip.AddrPort) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(stacktest.Patience))
	buf := make([]byte, 1<<16)
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func (s udpSocket) send(t testing.TB, b []byte) {
	t.Helper()
	if _, err := s.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (s udpSocket) answer(t testing.TB, b []byte, to netip.AddrPort) {
	t.Helper()
	if _, err := s.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// sendTrain has the kernel cut a payload into datagrams; addr is where they go
// unless the socket is connected.
func (s udpSocket) sendTrain(t testing.TB, payload []byte, size int) {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal(err)
	}
	if s.RemoteAddr() != nil {
		s.send(t, payload)
	} else {
		s.answer(t, payload, s.addr)
	}
}
