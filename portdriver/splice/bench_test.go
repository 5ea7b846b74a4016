package splice

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/portdriver"
)

// BenchmarkConnect is a whole short connection: connect, the server's first byte,
// end. Client, driver and server share the processors; direct leaves the driver out.
func BenchmarkConnect(b *testing.B) {
	l := listenTCP(b, "127.0.0.10:0")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{1})
			c.Close()
		}
	}()
	b.Cleanup(func() {
		l.Close()
		<-done
	})
	b.Run("direct", func(b *testing.B) { connects(b, addrOf(l.Addr())) })
	b.Run("published", func(b *testing.B) {
		w := newWorld(b, nil)
		connects(b, w.publish(portdriver.Listener{Target: addrOf(l.Addr())}, "127.0.0.1"))
	})
}

func connects(b *testing.B, to netip.AddrPort) {
	b.SetParallelism(4)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c, err := net.Dial("tcp", to.String())
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := io.Copy(io.Discard, c); err != nil {
				b.Error(err)
			}
			// With a reset, or ports run out in TIME_WAIT.
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
}
