package stack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
)

var hosts = []netip.Addr{host4, host6}

func TestHTTP(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		page := random(1, 4<<20)
		for _, host := range hosts {
			l, addr := listen(t, host)
			srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodPost {
					h := sha256.New()
					_, _ = io.Copy(h, req.Body)
					fmt.Fprintf(rw, "%x", h.Sum(nil))
					return
				}
				_, _ = rw.Write(page)
			})}
			go srv.Serve(l)
			t.Cleanup(func() { srv.Close() })
			transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				return w.dial(t, "tcp", addr)
			}}
			t.Cleanup(transport.CloseIdleConnections)
			client := &http.Client{Transport: transport, Timeout: 3 * stacktest.Patience}
			url := "http://" + addr.String() + "/"
			get := func(resp *http.Response, err error) []byte {
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			if got := get(client.Get(url)); sha256.Sum256(got) != sha256.Sum256(page) {
				t.Errorf("%v: %d bytes received, %d sent", host, len(got), len(page))
			}
			want := fmt.Sprintf("%x", sha256.Sum256(page))
			if got := get(client.Post(url, "application/octet-stream", bytes.NewReader(page))); string(got) != want {
				t.Errorf("%v: the server received something else", host)
			}
		}
		// At an MTU of 1500, 4 MiB are 2,900 packets a way: that there are far
		// fewer frames proves the super-segments.
		s := w.Snapshot()
		if in, out := s.Counters["frames_in"], s.Counters["frames_out"]; in > 6000 || out > 6000 {
			t.Errorf("%d frames in, %d out for 16 MiB", in, out)
		}
		for name, n := range s.Counters {
			if name == "drop_malformed" || name == "drop_checksum" || name == "drop_runt" || name == "drop_spoofed_source" {
				t.Errorf("%s: %d", name, n)
			}
		}
	})
}

// echoDatagrams serves on an address of the host until the test ends.
func echoDatagrams(t *testing.T, host netip.Addr) netip.AddrPort {
	t.Helper()
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return server.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestUDPEcho(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, host := range hosts {
			c := w.mustDial(t, "udp", echoDatagrams(t, host))
			buf := make([]byte, 1<<16)
			for _, size := range []int{0, 1, 1400, 1472, 1473, 9000, 60000, 65507} {
				payload := random(byte(size), size)
				if _, err := c.Write(payload); err != nil {
					t.Fatal(err)
				}
				if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], payload) {
					t.Fatalf("%v, %d bytes: %d came back, %v, %v", host, size, n, err, w.Snapshot().Counters)
				}
			}
		}
	})
}

func TestHalfClose(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, host := range hosts {
			l, addr := listen(t, host)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				b, _ := io.ReadAll(conn) // until the container's end
				_, _ = conn.Write(bytes.Repeat(b, 2))
			}()
			c := w.mustDial(t, "tcp", addr)
			question := random(7, 1<<20)
			if _, err := c.Write(question); err != nil {
				t.Fatal(err)
			}
			_ = c.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, bytes.Repeat(question, 2)) {
				t.Errorf("%v: %d bytes, %v", host, len(got), err)
			}
		}
		stacktest.Eventually(t, "the flows to end", func() bool { return w.Snapshot().TCP == 0 })
	})
}

func TestErrorsLookReal(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, c := range []struct {
			to   netip.AddrPort
			want error
		}{
			{netip.AddrPortFrom(host4, 1), syscall.ECONNREFUSED},
			{netip.AddrPortFrom(host6, 1), syscall.ECONNREFUSED},
			{netip.AddrPortFrom(nowhere4, 80), syscall.ENETUNREACH},
			{netip.AddrPortFrom(nowhere6, 80), syscall.ENETUNREACH},
			{netip.MustParseAddrPort("10.0.2.2:80"), syscall.ECONNREFUSED},
			{netip.MustParseAddrPort("[fd00::2]:80"), syscall.ECONNREFUSED},
			{netip.MustParseAddrPort("169.254.169.254:80"), syscall.EHOSTUNREACH},
			{netip.MustParseAddrPort("[fd00:ec2::254]:80"), syscall.EACCES},
		} {
			start := time.Now()
			if _, err := w.dial(t, "tcp", c.to); !errors.Is(err, c.want) {
				t.Errorf("%v after %v: %v, want %v", c.to, time.Since(start), err, c.want)
			}
		}
		for _, host := range hosts {
			c := w.mustDial(t, "udp", netip.AddrPortFrom(host, 1))
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("UDP to a closed port of %v: %v", host, err)
			}
		}
	})
}

// The host's loopback is reached through the gateway's address only, and only if
// that was asked for.
func TestHostLoopback(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "banner")
			conn.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	gateway := netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), port)
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open %v", open), func(t *testing.T) {
			w := newWorld(t, guest.Kinds[1], 1500, func(c *stack.Config) { c.HostLoopback = open })
			c, err := w.dial(t, "tcp", gateway)
			if !open {
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(c); string(b) != "banner" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// Many connections at once, opened by several users of the network.
func TestManyConnections(t *testing.T) {
	const clients, rounds = 10, 30
	each(t, func(t *testing.T, w *world) {
		l, addr := listen(t, host4)
		go echo(l)
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				for j := range rounds {
					message := random(byte(i*rounds+j), 1+j*3000)
					c, err := w.dial(t, "tcp", addr)
					if err != nil {
						t.Error(err)
						return
					}
					go c.Write(message)
					got := make([]byte, len(message))
					if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, message) {
						t.Errorf("client %d, round %d: %v", i, j, err)
					}
					c.Close()
				}
			})
		}
		wg.Wait()
		stacktest.Eventually(t, "the flows to end", func() bool { return w.Snapshot().TCP == 0 })
		if n := w.Snapshot().Counters["tcp_admitted"]; n != clients*rounds {
			t.Errorf("%d flows admitted, want %d", n, clients*rounds)
		}
	})
}

// Close in the middle of traffic: the container's connections are reset, Run
// returns, and (by newWorld's leak check) nothing is left.
func TestCloseUnderTraffic(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		l, addr := listen(t, host4)
		go echo(l)
		var wg sync.WaitGroup
		for range 4 {
			c := w.mustDial(t, "tcp", addr)
			wg.Go(func() {
				b := make([]byte, 100000)
				for {
					if _, err := c.Write(b); err != nil {
						if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
							t.Errorf("the container sees %v, want a reset", err)
						}
						return
					}
				}
			})
			wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
		}
		stacktest.Eventually(t, "traffic", func() bool {
			var n uint64
			for _, f := range w.Snapshot().Flows {
				n += f.BytesIn
			}
			return n > 10<<20
		})
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if s := w.Snapshot(); s.TCP != 0 || s.UDP != 0 || s.Echo != 0 {
			t.Errorf("%d TCP, %d UDP, %d echo flows left", s.TCP, s.UDP, s.Echo)
		}
		wg.Wait()
	})
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := stack.New(stack.Config{}); err == nil {
		t.Error("no device, no error")
	}
	for _, mtu := range []int{-1, 1, stack.MinMTU - 1, stack.MaxMTU + 1} {
		dev, peer := stacktest.NewPair(stacktest.AllOffloads)
		if _, err := stack.New(stack.Config{Device: dev, MTU: mtu}); err == nil {
			t.Errorf("MTU %d was accepted", mtu)
		}
		peer.Inject(t, stacktest.WireFrame{}.Header, make([]byte, 60))
		if _, err := dev.Readv(make([]byte, 12), make([]byte, 100)); err == nil {
			t.Errorf("MTU %d: the device was left open", mtu)
		}
	}
}
