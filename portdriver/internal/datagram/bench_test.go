package datagram

import (
	"net/netip"
	"testing"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock"
)

func message(from netip.AddrPort, payload []byte) hostsock.Message {
	return hostsock.Message{From: from, Local: loopback4, Payload: payload}
}

// BenchmarkIn measures datagrams of 1,400 bytes from a client to the container's
// side, each sent by a system call of its own: what is left of the time is the
// client's. lost/op is what the listener's socket had no room for.
func BenchmarkIn(b *testing.B) {
	s, _ := newService(b, func(_ *Config, c *container) { c.echo, c.quiet = false, true })
	p := dial(b, from(loopback4), serve(b, s, 1, loopback4))
	payload := make([]byte, 1400)
	b.SetBytes(1400)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		_, _ = p.Write(payload)
	}
	b.StopTimer()
	b.ReportMetric(float64(uint64(b.N)-count(s, portdriver.Datagrams))/float64(b.N), "lost/op")
}

// BenchmarkReceive measures what the receiving goroutine and the pump do with a
// datagram of 1,400 bytes, without system calls.
func BenchmarkReceive(b *testing.B) {
	s, _ := newService(b, func(_ *Config, c *container) { c.echo, c.quiet = false, true })
	serve(b, s, 1, loopback4)
	ln := answeredListener(s)
	m := message(netip.MustParseAddrPort("192.0.2.1:5000"), make([]byte, 1400))
	b.SetBytes(1400)
	b.ReportAllocs()
	for range b.N {
		ln.Receive(m)
	}
}

// BenchmarkReply measures replies of 1,400 bytes up to their being sent.
func BenchmarkReply(b *testing.B) {
	s, c := newService(b, func(_ *Config, c *container) { c.echo = false })
	p := dial(b, from(loopback4), serve(b, s, 1, loopback4))
	p.send(b, []byte("x"))
	f := s.Find(c.received(b, 1)[0].route)
	payload := make([]byte, 1400)
	b.SetBytes(1400)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		f.Reply(payload, 0)
	}
}

// BenchmarkNewFlow measures a datagram from a client not seen before while the
// table is full: what a flood costs.
func BenchmarkNewFlow(b *testing.B) {
	s, _ := newService(b, func(_ *Config, c *container) { c.echo, c.quiet = false, true })
	serve(b, s, 1, loopback4)
	ln := answeredListener(s)
	b.ReportAllocs()
	for i := range b.N {
		a := netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)})
		ln.Receive(message(netip.AddrPortFrom(a, uint16(1+i%60_000)), []byte("x")))
	}
}

// BenchmarkFind measures how the flow of a reply is found.
func BenchmarkFind(b *testing.B) {
	t := newBench(portdriver.MaxUDP)
	var r portdriver.Route
	for n := range portdriver.MaxUDP {
		f, _ := t.add(addr(n), 5000, true)
		r = f.route
	}
	b.ReportAllocs()
	for range b.N {
		if t.byRoute(r) == nil {
			b.Fatal("not found")
		}
	}
}
