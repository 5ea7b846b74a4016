package stack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/stacktest"
)

// listenIn opens a TCP listener of the container.
func (w *world) listenIn(t *testing.T, at string) (net.Listener, uint16) {
	t.Helper()
	var l net.Listener
	w.g.Do(t, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// enter connects a client of the host to the container's server and relays. It
// returns the client's end.
func (w *world) enter(t *testing.T, client, server netip.AddrPort) (*net.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stacktest.Patience)
	defer cancel()
	s, err := w.DialTCP(ctx, client, server)
	if err != nil {
		return nil, err
	}
	host, outside := stacktest.TCPPair(t)
	var out, in atomic.Uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		relay.TCP(s, host, relay.Counts{Out: &out, In: &in})
	}()
	t.Cleanup(func() {
		outside.Close()
		<-done
	})
	_ = outside.SetDeadline(time.Now().Add(3 * stacktest.Patience))
	return outside, nil
}

// A kernel in the container sees the client's own address, and bytes go both ways
// whole, each direction to its end.
func TestPublishedTCP(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i, c := range clients {
			l, port := w.listenIn(t, net.JoinHostPort(c.server.Addr().String(), "0"))
			server := netip.AddrPortFrom(c.server.Addr(), port)
			question, answer := random(byte(i), 3<<20), random(byte(i+100), 2<<20)
			var wg sync.WaitGroup
			wg.Go(func() {
				conn, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if from := conn.RemoteAddr().(*net.TCPAddr).AddrPort(); from != c.client {
					t.Errorf("the server sees %v, want %v", from, c.client)
				}
				if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, question) {
					t.Errorf("the server read %d bytes, %v; want %d", len(got), err, len(question))
				}
				if _, err := conn.Write(answer); err != nil {
					t.Error(err)
				}
			})
			client, err := w.enter(t, c.client, server)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write(question); err != nil {
				t.Error(err)
			}
			client.CloseWrite()
			if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, answer) {
				t.Errorf("the client read %d bytes, %v; want %d", len(got), err, len(answer))
			}
			wg.Wait()
		}
		stacktest.Eventually(t, "the flows to end", func() bool { return w.Snapshot().TCPIn == 0 })
	})
}

// A client's port may come again at once, also when the server ended first and the
// container's kernel still remembers the connection (TIME_WAIT).
func TestPublishedTCPPortComesAgain(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, c := range clients {
			l, port := w.listenIn(t, net.JoinHostPort(c.server.Addr().String(), "0"))
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte("bye"))
					conn.Close()
				}
			}()
			for range 20 {
				var client *net.TCPConn
				stacktest.Eventually(t, "the connection", func() bool {
					var err error
					client, err = w.enter(t, c.client, netip.AddrPortFrom(c.server.Addr(), port))
					if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
						t.Fatal(err)
					}
					return err == nil
				})
				if b, err := io.ReadAll(client); string(b) != "bye" || err != nil {
					t.Errorf("read %q, %v", b, err)
				}
				client.Close()
			}
		}
	})
}

func TestPublishedTCPRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, c := range clients {
			loopback := "127.0.0.1:0"
			if c.server.Addr().Is6() {
				loopback = "[::1]:0"
			}
			own, port := w.listenIn(t, loopback) // the container's own business
			_, err := w.enter(t, c.client, netip.AddrPortFrom(c.server.Addr(), port))
			own.Close()
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v: %v", c.server, err)
			}
			l, port := w.listenIn(t, net.JoinHostPort(c.server.Addr().String(), "0"))
			go func() {
				defer l.Close() // its port must not answer for a later one's
				if conn, err := l.Accept(); err == nil {
					_ = conn.(*net.TCPConn).SetLinger(0)
					conn.Close()
				}
			}()
			client, err := w.enter(t, c.client, netip.AddrPortFrom(c.server.Addr(), port))
			if errors.Is(err, syscall.ECONNRESET) {
				continue // it came before DialTCP returned
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v: after the server's reset: %v", c.server, err)
			}
		}
	})
}

// While the container and a client talk, the container may also connect to that
// client's address: the one does not disturb the other.
func TestPublishedTCPBesideOutgoing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		out, target := listen(t, host4)
		go echo(out)
		in, port := w.listenIn(t, "10.0.2.100:0")
		go echo(in)
		client, err := w.enter(t, netip.AddrPortFrom(host4, 50000), netip.AddrPortFrom(clients[0].server.Addr(), port))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			for _, conn := range []net.Conn{client, w.mustDial(t, "tcp", target)} {
				b := []byte("hello")
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
					t.Fatalf("%q, %v", b, err)
				}
			}
		}
	})
}

// Datagrams come with the client's address, in batches and larger than the MTU, and
// the answers are seen first by SetPublished's function.
func TestPublishedUDP(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i, c := range clients {
			var server *net.UDPConn
			w.g.Do(t, func() (err error) {
				server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.server.Addr(), 0)))
				return err
			})
			defer server.Close()
			to := server.LocalAddr().(*net.UDPAddr).AddrPort()
			var mu sync.Mutex
			answers := map[string]int{}
			w.SetPublished(func(from, client netip.AddrPort, payload []byte, segment int) bool {
				mu.Lock()
				defer mu.Unlock()
				if from != to || client != c.client {
					return false
				}
				for ; segment > 0 && len(payload) > segment; payload = payload[segment:] {
					answers[string(payload[:segment])]++
				}
				answers[string(payload)]++
				return true
			})
			big, batch := random(byte(i), 60000), random(byte(i+50), 20*1200)
			w.SendUDP(c.client, to, big, 0)
			w.SendUDP(c.client, to, batch, 1200)
			_ = server.SetDeadline(time.Now().Add(stacktest.Patience))
			b := make([]byte, 1<<16)
			for j := range 21 {
				n, from, err := server.ReadFromUDPAddrPort(b)
				if err != nil || from != c.client {
					t.Fatalf("%v: datagram %d: from %v, %v", c.client, j, from, err)
				}
				want := big
				if j > 0 {
					want = batch[(j-1)*1200:][:1200]
				}
				if !bytes.Equal(b[:n], want) {
					t.Fatalf("%v: datagram %d: %d bytes, want %d", c.client, j, n, len(want))
				}
				if _, err := server.WriteToUDPAddrPort(b[:n], from); err != nil {
					t.Fatal(err)
				}
			}
			// In any order: the container's kernel lets one overtake another while it
			// looks for the gateway.
			stacktest.Eventually(t, "the answers", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(answers) == 21
			})
			for j := range 21 {
				want := big
				if j > 0 {
					want = batch[(j-1)*1200:][:1200]
				}
				if answers[string(want)] != 1 {
					t.Errorf("%v: answer %d came %d times", c.client, j, answers[string(want)])
				}
			}
			if n := w.Snapshot().UDP; n != 0 {
				t.Errorf("%v: %d mappings towards the outside", c.client, n)
			}
		}
	})
}
