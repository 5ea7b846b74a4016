package udpout

import (
	"bytes"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
)

// BenchmarkExpress measures one datagram of 1,400 bytes in a flow that has moved over,
// sent one by one as fast as the sender can. The sender and the receiver share the
// processors with the table; "lost/op" is what they were too slow for.
func BenchmarkExpress(b *testing.B) {
	b.Run("out", func(b *testing.B) {
		tb, _, a, s, _ := busyFlow(b)
		k := counted(b, s)
		blast(b, tb, k, func(payload []byte) { _, _ = a.WriteToUDPAddrPort(payload, s.addr) })
	})
	b.Run("in", func(b *testing.B) {
		tb, _, a, s, mapped := busyFlow(b)
		k := counted(b, server{a.UDPConn, a.addr})
		blast(b, tb, k, func(payload []byte) { _, _ = s.WriteToUDPAddrPort(payload, mapped) })
	})
}

func busyFlow(b *testing.B) (*Table, *inside, *app, server, netip.AddrPort) {
	if err := addresses(); err != nil {
		b.Fatal(err)
	}
	s := listenOn(b, outside4[0])
	tb, _, in := newExpressTable(b, s.addr.Port(), nil)
	a := in.open(client4)
	return tb, in, a, s, a.moveOver(b, tb, s)
}

// counted counts what arrives at a server.
func counted(b *testing.B, s server) *atomic.Int64 {
	var n atomic.Int64
	var wg sync.WaitGroup
	_ = s.SetReadDeadline(time.Time{})
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			if _, _, err := s.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			n.Add(1)
		}
	})
	b.Cleanup(func() { _ = s.Close(); wg.Wait() })
	return &n
}

func blast(b *testing.B, tb *Table, arrived *atomic.Int64, send func([]byte)) {
	payload := bytes.Repeat([]byte("x"), 1400)
	b.SetBytes(1400)
	b.ReportAllocs()
	for b.Loop() {
		send(payload)
	}
	elapsed := b.Elapsed()
	eventually(b, "end of arrivals", func() bool {
		n := arrived.Load()
		time.Sleep(10 * time.Millisecond)
		return n == arrived.Load()
	})
	b.ReportMetric(float64(arrived.Load())*1400*8/float64(elapsed.Nanoseconds()), "Gbit/s")
	b.ReportMetric(1-float64(arrived.Load())/float64(b.N), "lost/op")
	if tb.numPairs() != 1 || count(tb, flow.UDPExpressFlows) == 0 {
		b.Errorf("not on the express path: %v", tb.cfg.Flows.Counters.Snapshot())
	}
}
