package join

import (
	"context"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/spawn"
)

// BenchmarkVisit is the time to fetch the sockets of the packet endpoint.
func BenchmarkVisit(b *testing.B) {
	target := benchTarget(b)
	for b.Loop() {
		s, err := target.Open(Request{})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkSendSockets is the time to make sockets in the target and to receive
// them in another event loop; the process is as large as this test is.
func BenchmarkSendSockets(b *testing.B) {
	target := benchTarget(b)
	for _, n := range []int{1, 64, 250, 1024} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			to, from, err := fdpass.Pair()
			if err != nil {
				b.Fatal(err)
			}
			defer to.Close()
			conn, err := fdpass.NewConn(from)
			if err != nil {
				b.Fatal(err)
			}
			var received atomic.Int64
			done := make(chan struct{})
			go func() {
				defer close(done)
				var fds []int
				for {
					_, got, err := conn.RecvRaw(make([]byte, 1), fds[:0])
					if err != nil {
						return
					}
					for _, fd := range got {
						unix.Close(fd)
					}
					fds = got
					received.Add(int64(len(got)))
				}
			}()
			for b.Loop() {
				if err := target.SendSockets(to, handoff.SocketTCP4, n); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "sockets/s")
			conn.Close()
			<-done
		})
	}
}

func benchTarget(b *testing.B) *Target {
	b.Helper()
	maps, err := spawn.PlanMaps(context.Background(), spawn.Single)
	if err != nil {
		b.Fatal(err)
	}
	in, keep, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { keep.Close() })
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in}, Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	target, err := OpenPID(p.PID)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { target.Close() })
	return target
}
