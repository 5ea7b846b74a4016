package splice

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/proxyproto"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestBothFamilies(t *testing.T) {
	for _, c := range []struct {
		name, host, client string
		container          netip.Addr
		shown              string
	}{
		{"IPv4", "127.0.0.1", "127.0.0.7:0", container4, "127.0.0.1"},
		{"IPv6", "[::1]", "[::1]:0", container6, "::1"},
		{"IPv6 client, IPv4 container", "[::1]", "[::1]:0", container4, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			at := server(t, c.container)
			port := w.publish(portdriver.Listener{Rule: 7, Target: at}, c.host)
			cl := dial(t, c.client, port)
			own := addrOf(cl.LocalAddr())
			seen := netip.MustParseAddrPort(cl.seen(t))
			if c.shown != "" && seen != netip.AddrPortFrom(netip.MustParseAddr(c.shown), own.Port()) {
				t.Errorf("the server sees %v, the client is %v", seen, own)
			}
			cl.talk(t, bytes.Repeat([]byte("x"), 3<<20))
			flows := w.Flows(10)
			if len(flows) != 1 {
				t.Fatalf("flows %+v", flows)
			}
			f := flows[0]
			if f.Rule != 7 || f.Client != own || f.Source != seen || f.Target != at || f.Out != 3<<20 || time.Since(f.Started) > time.Hour {
				t.Errorf("flow %+v", f)
			}
			if st := w.Status(); st.TCP != 1 || st.UDP != 0 || st.Counters["published_accepted"] != 1 {
				t.Errorf("status %+v", st)
			}
			if list := w.Flows(0); len(list) != 0 {
				t.Errorf("asked for no flow, got %v", list)
			}
		})
	}
}

// TestHalfClose: the end of one direction leaves the other one be.
func TestHalfClose(t *testing.T) {
	w := newWorld(t, nil)
	l := listenTCP(t, "127.0.0.10:0")
	port := w.publish(portdriver.Listener{Target: addrOf(l.Addr())}, "127.0.0.1")
	cl := dial(t, "", port)
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := cl.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	_ = cl.Conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(s); string(b) != "question" || err != nil {
		t.Fatalf("the server got %q, %v", b, err)
	}
	_, _ = s.Write([]byte("answer"))
	s.Close()
	if b, err := io.ReadAll(cl.r); string(b) != "answer" || err != nil {
		t.Errorf("the client got %q, %v", b, err)
	}
	stacktest.Eventually(t, "the flow to end", func() bool { return w.Status().TCP == 0 })
}

func TestRefusedTargetResetsClient(t *testing.T) {
	w := newWorld(t, nil)
	l := listenTCP(t, "127.0.0.10:0")
	closed := addrOf(l.Addr())
	l.Close()
	port := w.publish(portdriver.Listener{Target: closed}, "127.0.0.1")
	for range 20 {
		refused(t, port)
	}
	w.counted(portdriver.RefusedTarget, 20)
	stacktest.Eventually(t, "all to end", func() bool { return w.Status().TCP == 0 })
}

// TestOtherFamily: a target without address means the container's address of the
// client's family, and the other one if nothing is there.
func TestOtherFamily(t *testing.T) {
	w := newWorld(t, nil)
	l := listenTCP(t, "[::1]:0")
	echo(t, l)
	target := netip.AddrPortFrom(netip.Addr{}, addrOf(l.Addr()).Port())
	port := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	cl := dial(t, "127.0.0.7:0", port)
	if seen := cl.seen(t); !strings.HasPrefix(seen, "[::1]:") {
		t.Errorf("the server sees %s", seen)
	}
	w.counted(portdriver.OtherFamily, 1)
	w.counted(portdriver.RefusedTarget, 0)
}

func TestNoRouteResets(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Addresses = portdriver.Addresses{} })
	port := w.publish(portdriver.Listener{Target: netip.AddrPortFrom(netip.Addr{}, 80)}, "127.0.0.1")
	refused(t, port)
	w.counted(portdriver.RefusedTarget, 1)
}

func TestProxyHeader(t *testing.T) {
	for version, bound := range map[int]string{proxyproto.V1: "127.0.0.1", proxyproto.V2: "0.0.0.0"} {
		w := newWorld(t, nil)
		l := listenTCP(t, "127.0.0.10:0")
		port := w.publish(portdriver.Listener{Target: addrOf(l.Addr()), Proxy: version}, bound)
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port.Port())
		cl := dial(t, "127.0.0.7:0", to)
		_, _ = cl.Write([]byte("hello"))
		_ = cl.Conn.(*net.TCPConn).CloseWrite()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(s)
		s.Close()
		h, n, parseErr := proxyproto.Parse(b)
		want := proxyproto.Header{Version: version, Source: addrOf(cl.LocalAddr()), Destination: to}
		if err != nil || parseErr != nil || h != want || string(b[n:]) != "hello" {
			t.Errorf("version %d: %q, %+v, %v %v", version, b, h, err, parseErr)
		}
	}
}

// TestShut: the port is closed when Shut returns; connections go on.
func TestShut(t *testing.T) {
	w := newWorld(t, nil)
	target := server(t, container4)
	port := w.publish(portdriver.Listener{Rule: 1, Target: target}, "127.0.0.1")
	other := w.publish(portdriver.Listener{Rule: 2, Target: target}, "127.0.0.1")
	cl := dial(t, "", port)
	cl.seen(t)
	w.Shut(1)
	w.Shut(1)
	if c, err := tryDial("", port); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
	cl.talk(t, []byte("still here"))
	dial(t, "", other).seen(t)
}

func TestCloseResetsEverything(t *testing.T) {
	w := newWorld(t, nil)
	target := server(t, container4)
	port := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	cl := dial(t, "", port)
	cl.seen(t)
	w.Close()
	cl.wasReset(t)
	if c, err := tryDial("", port); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
	w.Close()
	l := listenTCP(t, "127.0.0.1:0")
	if err := w.Open(portdriver.Listener{Network: portdriver.NetTCP, Target: target, File: fileOf(t, l)}); err == nil {
		t.Error("a closed driver opens a port")
	}
	if st := w.Status(); st.TCP != 0 {
		t.Errorf("%d connections after Close", st.TCP)
	}
}

// TestLoopsClosedFirst: the other order leaves nothing behind either.
func TestLoopsClosedFirst(t *testing.T) {
	w := newWorld(t, nil)
	w.setDeaf(true)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	cl := dial(t, "", port) // waits for a socket
	w.counted(portdriver.Accepted, 1)
	w.loops.Close()
	w.Close()
	cl.wasReset(t)
	l := listenTCP(t, "127.0.0.1:0")
	if loops, err := New(Config{Loops: w.loops, Stock: w.stock}); err != nil {
		t.Error(err)
	} else {
		err := loops.Open(portdriver.Listener{Network: portdriver.NetTCP, Target: port, File: fileOf(t, l)})
		if err == nil {
			t.Error("a port was opened without a loop")
		}
		loops.Close()
	}
}

func TestOpenRefuses(t *testing.T) {
	w := newWorld(t, nil)
	target := netip.MustParseAddrPort("127.0.0.10:80")
	tcp := func(t *testing.T) *os.File { return fileOf(t, listenTCP(t, "127.0.0.1:0")) }
	for name, c := range map[string]struct {
		l    portdriver.Listener
		file func(t *testing.T) *os.File
	}{
		"no file":       {portdriver.Listener{Network: portdriver.NetTCP, Target: target}, func(*testing.T) *os.File { return nil }},
		"udp":           {portdriver.Listener{Network: portdriver.NetUDP, Target: target}, tcp},
		"no target":     {portdriver.Listener{Network: portdriver.NetTCP}, tcp},
		"tcp as unix":   {portdriver.Listener{Network: portdriver.NetUnix, Target: target}, tcp},
		"no root":       {portdriver.Listener{Network: portdriver.NetTCP, TargetPath: "/run/x"}, tcp},
		"reverse port":  {portdriver.Listener{Network: portdriver.NetTCP, Target: target, Reverse: true}, tcp},
		"relative path": {portdriver.Listener{Network: portdriver.NetTCP, TargetPath: "run/x", Reverse: true}, tcp},
		"long path":     {portdriver.Listener{Network: portdriver.NetTCP, TargetPath: "/" + strings.Repeat("x", 107), Reverse: true}, tcp},
		"not listening": {portdriver.Listener{Network: portdriver.NetTCP, Target: target}, func(t *testing.T) *os.File {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fd), "socket")
		}},
		"no socket": {portdriver.Listener{Network: portdriver.NetTCP, Target: target}, func(t *testing.T) *os.File {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			return f
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c.l.File = c.file(t)
			if err := w.Open(c.l); err == nil {
				t.Error("opened")
			}
			if c.l.File != nil {
				if err := c.l.File.Close(); err == nil {
					t.Error("the file was left open")
				}
			}
		})
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a driver without anything")
	}
}

// TestManyInARow: nothing grows with the number of connections there were.
func TestManyInARow(t *testing.T) {
	w := newWorld(t, nil)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	const workers, each = 4, 1250
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				c, err := tryDial("", port)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = c.r.ReadString('\n')
				c.Close()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	stacktest.Eventually(t, "all to end", func() bool { return w.Status().TCP == 0 })
	w.counted(portdriver.Accepted, workers*each)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Driver.mu.Lock()
	defer w.Driver.mu.Unlock()
	if n := len(w.conns); n != 0 || w.pending.Load() != 0 {
		t.Errorf("%d connections, %d of them pending, are remembered", n, w.pending.Load())
	}
	for _, l := range w.lanes {
		if l.load() != 0 {
			t.Errorf("a lane has a load of %d", l.load())
		}
	}
}

// TestSpread: connections that come together do not all go to one loop.
func TestSpread(t *testing.T) {
	w := newWorld(t, nil)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	for range 20 {
		dial(t, "", port).seen(t)
	}
	for i, l := range w.loops.All() {
		if n := l.Flows(); n < 8 || n > 12 {
			t.Errorf("loop %d has %d of 20 flows", i, n)
		}
	}
}

// TestChurn opens, shuts and closes while clients come, for the race detector.
func TestChurn(t *testing.T) {
	w := newWorld(t, nil)
	target := server(t, container4)
	steady := w.publish(portdriver.Listener{Rule: 1, Target: target}, "127.0.0.1")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 100 {
				c, err := tryDial("", steady)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.r.ReadString('\n'); err != nil {
					t.Errorf("an untouched port: %v", err)
				}
				c.Close()
			}
		})
	}
	for rule := 2; rule < 40; rule++ {
		at := w.publish(portdriver.Listener{Rule: rule, Target: target}, "127.0.0.1")
		if c, err := tryDial("", at); err == nil {
			c.Close()
		}
		w.Shut(rule)
		w.Flows(5)
	}
	wg.Wait()
}
