package udpout

import (
	"net/netip"
	"sync"
	"testing"
)

// drained opens a server whose datagrams are read and thrown away.
func drained(b *testing.B) netip.AddrPort {
	s := listenOn(b, outside4[0])
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			if _, _, err := s.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
		}
	})
	b.Cleanup(func() { _ = s.Close(); wg.Wait() })
	return s.addr
}

// BenchmarkSend measures one datagram of 1,400 bytes. "each" flushes after every
// one, as when nothing else waits; "batch" every 64; "uso" gets them in one piece.
func BenchmarkSend(b *testing.B) {
	const size, train = 1400, 46
	payload := make([]byte, size*train)
	run := func(name string, f func(tb *Table, d Datagram, n int)) {
		b.Run(name, func(b *testing.B) {
			tb, _ := newTable(b, nil)
			d := Datagram{From: client4, To: drained(b), Payload: payload[:size], TTL: 64}
			b.SetBytes(size)
			b.ReportAllocs()
			b.ResetTimer()
			f(tb, d, b.N)
		})
	}
	run("each", func(tb *Table, d Datagram, n int) {
		for range n {
			tb.Handle(d)
			tb.Flush()
		}
	})
	run("batch", func(tb *Table, d Datagram, n int) {
		for i := range n {
			tb.Handle(d)
			if i%64 == 63 {
				tb.Flush()
			}
		}
		tb.Flush()
	})
	run("uso", func(tb *Table, d Datagram, n int) {
		d.Payload, d.Segment = payload, size
		for i := 0; i < n; i += train {
			tb.Handle(d)
		}
		tb.Flush()
	})
}

// BenchmarkNewMapping measures a datagram from a port not seen before while the
// table is full: what a flood costs.
func BenchmarkNewMapping(b *testing.B) {
	tb, _ := newTable(b, nil)
	d := Datagram{To: drained(b), Payload: make([]byte, 64), TTL: 64}
	b.ReportAllocs()
	for i := range b.N {
		d.From = clientN(i % 200_000)
		tb.Handle(d)
	}
}
