package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/proxyproto"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestTCPBothWays(t *testing.T) {
	r := newTCPRig(t, nil)
	for _, c := range []struct{ at, shown, target string }{
		{"127.0.0.1:0", "10.0.2.2", "10.0.2.100:80"},
		{"[::1]:0", "fd00::2", "[fd00::100]:80"},
	} {
		to := r.publish(t, c.at, portdriver.Listener{})
		client := tcpClient(t, to)
		echoes(t, client)
		calls := r.engine.dials()
		want := dialCall{netip.AddrPortFrom(netip.MustParseAddr(c.shown), addrPort(client.LocalAddr()).Port()), netip.MustParseAddrPort(c.target)}
		if got := calls[len(calls)-1]; got != want {
			t.Errorf("%s: dialled %v, want %v", c.at, got, want)
		}
		if _, err := client.Write([]byte("last words")); err != nil {
			t.Error(err)
		}
		_ = client.CloseWrite()
		if b, err := io.ReadAll(client); string(b) != "last words" || err != nil {
			t.Errorf("%s: after our end of stream: %q, %v", c.at, b, err)
		}
	}
	r.idle(t)
	r.counted(t, portdriver.Accepted, 2)
	if s := r.Status(); s.Counters["published_accepted"] != 2 || len(s.Counters) != 1 {
		t.Errorf("%v", s.Counters)
	}
}

func TestTCPRefusedIsReset(t *testing.T) {
	r := newTCPRig(t, nil)
	to := r.publish(t, "127.0.0.1:0", portdriver.Listener{})
	r.engine.set(func(context.Context, dialCall) error { return syscall.ECONNREFUSED })
	refusesTCP(t, to)
	r.counted(t, portdriver.RefusedTarget, 1)
	if calls := r.engine.dials(); len(calls) != 2 || calls[1].target.String() != "[fd00::100]:80" || calls[1].source.Addr().String() != "fd00::2" {
		t.Errorf("dialled %v, want both families", calls)
	}
	r.engine.set(func(_ context.Context, c dialCall) error {
		if c.target.Addr().Is4() {
			return syscall.ECONNREFUSED
		}
		return nil
	})
	echoes(t, tcpClient(t, to))
	r.counted(t, portdriver.OtherFamily, 1)
	r.engine.set(func(context.Context, dialCall) error { return syscall.ENOBUFS })
	refusesTCP(t, to)
	r.counted(t, portdriver.RefusedLimit, 1)
}

func TestTCPTargetWithAddress(t *testing.T) {
	r := newTCPRig(t, nil)
	to := r.publish(t, "127.0.0.1:0", portdriver.Listener{Target: netip.MustParseAddrPort("[fd00::100]:81")})
	r.engine.set(func(context.Context, dialCall) error { return syscall.ECONNREFUSED })
	refusesTCP(t, to)
	if calls := r.engine.dials(); len(calls) != 1 || calls[0].target.String() != "[fd00::100]:81" {
		t.Errorf("dialled %v, want the target only", calls)
	}
}

// A container that does not answer costs the client the timeout, and others nothing.
func TestTCPSilentContainer(t *testing.T) {
	r := newTCPRig(t, func(c *TCPConfig) { c.ConnectTimeout = 50 * time.Millisecond })
	silent, other := r.publish(t, "127.0.0.1:0", portdriver.Listener{}), r.publish(t, "127.0.0.1:0", portdriver.Listener{Target: netip.MustParseAddrPort("10.0.2.100:81")})
	r.engine.set(func(ctx context.Context, c dialCall) error {
		if c.target.Port() == 81 {
			return nil
		}
		return hang(ctx, c)
	})
	waiting := tcpClient(t, silent)
	echoes(t, tcpClient(t, other))
	isReset(t, waiting)
	r.counted(t, portdriver.RefusedTarget, 1)
}

// A client whose address and port the container has a connection with is shown by
// another port, and one that cannot be shown at all by the gateway.
func TestTCPOtherSource(t *testing.T) {
	client := netip.MustParseAddrPort("198.51.100.1:50000")
	for _, c := range []struct{ refused, want int }{{1, 2}, {2, 3}, {3, 3}} {
		r := newTCPRig(t, nil)
		n := 0
		r.engine.set(func(context.Context, dialCall) error {
			if n++; n <= c.refused {
				return syscall.EADDRNOTAVAIL
			}
			return nil
		})
		s, err := r.dial(context.Background(), portdriver.Route{Source: client, Target: netip.MustParseAddrPort("10.0.2.100:80")})
		if (err == nil) != (c.refused < 3) || err == nil && s == nil {
			t.Errorf("%d refused: %v", c.refused, err)
		}
		sources := []string{"198.51.100.1:50000", "198.51.100.1:0", "10.0.2.2:0"}
		calls := r.engine.dials()
		if len(calls) != c.want {
			t.Fatalf("%d refused: dialled %v", c.refused, calls)
		}
		for i, call := range calls {
			if call.source.String() != sources[i] {
				t.Errorf("%d refused: dial %d from %v, want %s", c.refused, i, call.source, sources[i])
			}
		}
		r.counted(t, portdriver.OtherSource, uint64(min(1, 3-c.refused)))
	}
}

func TestTCPProxyHeader(t *testing.T) {
	for _, version := range []int{proxyproto.V1, proxyproto.V2} {
		for _, at := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
			r := newTCPRig(t, nil)
			r.engine.full = 3
			to := r.publish(t, at, portdriver.Listener{Proxy: version})
			if to.Addr().IsUnspecified() {
				to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port())
			}
			client := tcpClient(t, to)
			_ = client.CloseWrite()
			b, err := io.ReadAll(client)
			if err != nil {
				t.Fatal(err)
			}
			want := proxyproto.Header{Version: version, Source: addrPort(client.LocalAddr()), Destination: to}
			if h, n, err := proxyproto.Parse(b); err != nil || n != len(b) || h != want {
				t.Errorf("%s: %+v, %d of %d bytes, %v; want %+v", at, h, n, len(b), err, want)
			}
		}
	}
}

// Shut closes the rule's listeners, here and now, and nothing else.
func TestTCPShut(t *testing.T) {
	r := newTCPRig(t, nil)
	a := r.publish(t, "127.0.0.1:0", portdriver.Listener{Rule: 1})
	b := r.publish(t, "127.0.0.1:0", portdriver.Listener{Rule: 1})
	other := r.publish(t, "127.0.0.1:0", portdriver.Listener{Rule: 2})
	client := tcpClient(t, a)
	echoes(t, client)
	r.Shut(1)
	for _, to := range []netip.AddrPort{a, b} {
		if _, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Shut: %v", err)
		}
	}
	echoes(t, client)
	echoes(t, tcpClient(t, other))
	r.Shut(1)
	r.Shut(99)
}

// The supervisor's copy of a socket stays good: a new driver serves it, and clients
// that came in between are served too.
func TestTCPListenerOutlivesTheDriver(t *testing.T) {
	keep, at := tcpSocket(t, "127.0.0.1:0")
	defer keep.Close()
	for range 3 {
		waiting := tcpClient(t, at)
		fd, err := unix.Dup(int(keep.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		d := NewTCP(TCPConfig{Addresses: udpPlan, Engine: new(tcpFakeEngine)})
		l := portdriver.Listener{Network: portdriver.NetTCP, Bound: at, Target: netip.MustParseAddrPort("10.0.2.100:80"), File: os.NewFile(uintptr(fd), "")}
		if err := d.Open(l); err != nil {
			t.Fatal(err)
		}
		echoes(t, waiting)
		echoes(t, tcpClient(t, at))
		d.Close()
		isReset(t, waiting)
	}
}

func TestTCPCloseEndsEverything(t *testing.T) {
	r := newTCPRig(t, nil)
	to := r.publish(t, "127.0.0.1:0", portdriver.Listener{})
	var clients []*net.TCPConn
	for range 5 {
		c := tcpClient(t, to)
		echoes(t, c)
		clients = append(clients, c)
	}
	r.engine.set(hang)
	clients = append(clients, tcpClient(t, to))
	stacktest.Eventually(t, "the pending one", func() bool { return r.Status().TCP == 6 })
	closed := make(chan struct{})
	go func() {
		r.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(stacktest.Patience):
		t.Fatal("Close has not returned")
	}
	for _, c := range clients {
		isReset(t, c)
	}
	r.Close()
	f, _ := tcpSocket(t, "127.0.0.1:0")
	l := portdriver.Listener{Network: portdriver.NetTCP, Target: netip.MustParseAddrPort("10.0.2.100:80"), File: f}
	if err := r.Open(l); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file was left open")
	}
}

func TestTCPOpenRefuses(t *testing.T) {
	r := newTCPRig(t, nil)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	datagrams, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	target := netip.MustParseAddrPort("10.0.2.100:80")
	for name, l := range map[string]portdriver.Listener{
		"loopback":     {Target: netip.MustParseAddrPort("127.0.0.1:80")},
		"loopback 6":   {Target: netip.MustParseAddrPort("[::1]:80")},
		"no target":    {},
		"path":         {Target: target, TargetPath: "/run/x"},
		"reverse":      {Target: target, Reverse: true},
		"not a stream": {Target: target, File: datagrams},
		"unix":         {Target: target, Network: portdriver.NetUnix},
	} {
		if l.Network == "" {
			l.Network = portdriver.NetTCP
		}
		if l.File == nil {
			l.File, l.Bound = tcpSocket(t, "127.0.0.1:0")
		}
		if err := r.Open(l); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Log(err)
		}
		if err := l.File.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: the file was left open", name)
		}
	}
	if err := r.Open(portdriver.Listener{Network: portdriver.NetTCP, Target: target}); err == nil {
		t.Error("no file, no error")
	}
}

// script is an acceptor that first fails in every way that it is told to.
type script struct {
	acceptor
	mu     sync.Mutex
	errors []error
}

func (s *script) AcceptTCP() (*net.TCPConn, error) {
	s.mu.Lock()
	if len(s.errors) > 0 {
		err := s.errors[0]
		s.errors = s.errors[1:]
		s.mu.Unlock()
		return nil, err
	}
	s.mu.Unlock()
	return s.acceptor.AcceptTCP()
}

// No error ends an accept loop, and only a shortage makes it rest.
func TestTCPAcceptSurvivesErrors(t *testing.T) {
	opError := func(err error) error {
		return &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	r := newTCPRig(t, nil)
	f, at := tcpSocket(t, "127.0.0.1:0")
	l := portdriver.Listener{Network: portdriver.NetTCP, Bound: at, Target: netip.MustParseAddrPort("10.0.2.100:80"), File: f}
	socket, err := listenTCP(l)
	if err != nil {
		t.Fatal(err)
	}
	failing := &script{acceptor: socket, errors: []error{
		opError(unix.EMFILE), opError(unix.ECONNABORTED), opError(unix.ENFILE), opError(unix.EPERM), opError(unix.ENOMEM),
		opError(unix.ENOBUFS), opError(unix.EPROTO), opError(unix.EINVAL),
	}}
	if err := r.start(l, failing); err != nil {
		t.Fatal(err)
	}
	echoes(t, tcpClient(t, at))
	r.counted(t, portdriver.Paused, 5)
}

// With no descriptor left the port rests, and serves again once some are free.
func TestTCPRunsOutOfDescriptors(t *testing.T) {
	r := newTCPRig(t, nil)
	to := r.publish(t, "127.0.0.1:0", portdriver.Listener{})
	const clients = 20
	var waiting [clients]int
	for i := range waiting { // their descriptors are made before the shortage
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		waiting[i] = fd
	}
	free := shortage(t)
	for _, fd := range waiting {
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			t.Fatal(err)
		}
	}
	stacktest.Eventually(t, "a pause", func() bool { return r.counters.Load(portdriver.Paused) > 2 })
	if n := r.counters.Load(portdriver.Accepted); n >= clients {
		t.Errorf("%d of %d were accepted without descriptors", n, clients)
	}
	start := time.Now()
	free()
	stacktest.Eventually(t, "all clients", func() bool { return r.counters.Load(portdriver.Accepted) == clients })
	t.Logf("served again after %v", time.Since(start))
	echoes(t, tcpClient(t, to))
}

// shortage takes every descriptor but a few, until free is called.
func shortage(t *testing.T) (free func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	highest, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(highest)
	// Descriptors have the lowest free numbers: with this limit a few are left.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(highest) + 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	free = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(free)
	return free
}

// All places taken, the next client waits until one is free; it is not refused.
func TestTCPFull(t *testing.T) {
	r := newTCPRig(t, func(c *TCPConfig) { c.MaxFlows = 2 })
	to := r.publish(t, "127.0.0.1:0", portdriver.Listener{})
	other := r.publish(t, "127.0.0.1:0", portdriver.Listener{})
	a := tcpClient(t, to)
	echoes(t, a)
	b := tcpClient(t, other)
	echoes(t, b)
	c := tcpClient(t, to)
	r.counted(t, portdriver.Accepted, 3)
	if n := r.Status().TCP; n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	a.Close()
	echoes(t, c)
	waits := tcpClient(t, to)
	r.counted(t, portdriver.Accepted, 4)
	r.Shut(0) // also ends who waits
	isReset(t, waits)
	r.counted(t, portdriver.RefusedLimit, 1)
	b.Close()
	c.Close()
	r.idle(t)
}

func TestTCPCapacity(t *testing.T) {
	for limit, want := range map[uint64]int{0: 1, 1: 1, 64: 48, 1024: 768, 20000: 16000, 1 << 20: 16000, 1<<64 - 1: 16000} {
		if got := tcpCapacity(limit); got != want {
			t.Errorf("limit %d: %d, want %d", limit, got, want)
		}
	}
}
