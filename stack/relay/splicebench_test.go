package relay

import (
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// ways are how a client's bytes get to a server: without us, through a loop, and
// through the pair of goroutines with io.Copy that is customary in Go.
var ways = map[string]func(testing.TB) (client, server int){
	"direct": func(t testing.TB) (int, int) {
		client, server := stacktest.TCPPair(t)
		return blocking(t, client), blocking(t, server)
	},
	"loop": func(t testing.TB) (int, int) {
		ls := newLoops(t, 1)
		client, a := stacktest.TCPPair(t)
		b, server := stacktest.TCPPair(t)
		fa, fb := takeFD(t, a), takeFD(t, b)
		onLoop(t, ls.All()[0], func() { ls.All()[0].Splice(fa, fb, Splice{}) })
		return blocking(t, client), blocking(t, server)
	},
	"io.Copy": func(t testing.TB) (int, int) {
		client, a := stacktest.TCPPair(t)
		b, server := stacktest.TCPPair(t)
		for _, p := range [][2]*net.TCPConn{{a, b}, {b, a}} {
			go func() {
				_, _ = io.Copy(p[1], p[0])
				_ = p[1].CloseWrite()
			}()
		}
		return blocking(t, client), blocking(t, server)
	},
}

// blocking turns a connection into a descriptor that system calls wait for.
func blocking(t testing.TB, c conn) int {
	fd := takeFD(t, c)
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func BenchmarkBulk(b *testing.B) {
	for name, way := range ways {
		b.Run(name, func(b *testing.B) {
			client, server := way(b)
			data, got := make([]byte, 128<<10), make([]byte, 128<<10)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					if n, err := unix.Read(server, got); n <= 0 || err != nil {
						return
					}
				}
			})
			for b.Loop() {
				if _, err := unix.Write(client, data); err != nil {
					b.Fatal(err)
				}
			}
			_ = unix.Shutdown(client, unix.SHUT_WR)
			wg.Wait()
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for name, way := range ways {
		b.Run(name, func(b *testing.B) {
			client, server := way(b)
			message, got := make([]byte, 64), make([]byte, 64)
			b.ReportAllocs()
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					n, err := unix.Read(server, got)
					if n <= 0 || err != nil {
						return
					}
					_, _ = unix.Write(server, got[:n])
				}
			})
			for b.Loop() {
				if _, err := unix.Write(client, message); err != nil {
					b.Fatal(err)
				}
				if _, err := unix.Read(client, message); err != nil {
					b.Fatal(err)
				}
			}
			_ = unix.Shutdown(client, unix.SHUT_WR)
			wg.Wait()
		})
	}
}

// BenchmarkFlow is the whole life of a flow: joined, one message each way, ended.
func BenchmarkFlow(b *testing.B) {
	l := newLoops(b, 1).All()[0]
	message := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		q, err2 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil || err2 != nil {
			b.Fatal(err, err2)
		}
		done := make(chan struct{})
		l.Do(func() { l.Splice(p[0], q[0], Splice{Done: func(error) { close(done) }}) })
		for _, way := range [][2]int{{p[1], q[1]}, {q[1], p[1]}} {
			_, _ = unix.Write(way[0], message)
			_, _ = unix.Read(way[1], message)
		}
		_, _ = unix.Close(p[1]), unix.Close(q[1])
		<-done
	}
}
