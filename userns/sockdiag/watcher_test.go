package sockdiag

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/spawn"
)

// TestMain lets the test binary be a network namespace's inhabitant.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if os.Args[0] == "inhabitant" {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inhabited is a target whose loopback interface is up.
func inhabited(t testing.TB) *join.Target {
	t.Helper()
	maps, err := spawn.PlanMaps(context.Background(), spawn.Single)
	if err != nil {
		t.Fatal(err)
	}
	in, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in, nil, os.Stderr}, Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keep.Close(); p.Close() })
	target, err := join.OpenPID(p.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	s := visit(t, target)
	defer s.Close()
	if err := rtnl.Up(s.Route, "lo"); err != nil {
		t.Fatal(err)
	}
	return target
}

func visit(t testing.TB, target *join.Target) *join.Sockets {
	t.Helper()
	s, err := target.Open(join.Request{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func listen(t testing.TB, target *join.Target, addr string) net.Listener {
	t.Helper()
	a := netip.MustParseAddrPort(addr)
	kind := handoff.SocketTCP4
	if a.Addr().Is6() {
		kind = handoff.SocketTCP6
	}
	f, err := target.Listen(kind, a)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// sockets makes sockets of our own, which have the mark.
func sockets(t testing.TB, target *join.Target, kind handoff.SocketKind, n int) []int {
	t.Helper()
	to, from, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	conn, err := fdpass.NewConn(from)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := target.SendSockets(to, kind, n); err != nil {
		t.Fatal(err)
	}
	_, fds, err := conn.RecvRaw(make([]byte, 1), nil)
	if err != nil || len(fds) != n {
		t.Fatalf("%d sockets, %v", len(fds), err)
	}
	return fds
}

func bindUDP(t testing.TB, fd int, addr string) {
	t.Helper()
	a := netip.MustParseAddrPort(addr)
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if a.Addr().Is4() {
		sa = &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
}

func TestDump(t *testing.T) {
	usertest.AsUser(t)
	target := inhabited(t)
	diag := visit(t, target).Diag
	if got, more, err := Dump(diag); len(got) != 0 || more != 0 || err != nil {
		t.Fatalf("an empty namespace has %v, %d more, %v", got, more, err)
	}
	listen(t, target, "127.0.0.1:8000")
	listen(t, target, "[::1]:8001")
	listen(t, target, "0.0.0.0:8002")
	six := listen(t, target, "[::]:8003")
	udp4, udp6 := sockets(t, target, handoff.SocketUDP4, 2), sockets(t, target, handoff.SocketUDP6, 1)
	bindUDP(t, udp4[0], "127.0.0.1:5300")
	bindUDP(t, udp6[0], "[::1]:5300")
	// One with a peer is no server, and neither is a connection's socket.
	bindUDP(t, udp4[1], "127.0.0.1:5301")
	if err := unix.Connect(udp4[1], &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 5300}); err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	want := []Socket{
		{Bound: at("0.0.0.0:8002")}, {Bound: at("127.0.0.1:5300"), UDP: true, Mark: rtnl.PublishedMark},
		{Bound: at("127.0.0.1:8000")}, {Bound: at("[::]:8003")},
		{Bound: at("[::1]:5300"), UDP: true, Mark: rtnl.PublishedMark}, {Bound: at("[::1]:8001")},
	}
	got, _, err := Dump(diag)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
	}
	six.Close()
	for _, fd := range append(udp4, udp6...) {
		unix.Close(fd)
	}
}

// watch starts a Watcher that sends what has changed.
func watch(t testing.TB, target *join.Target) (*Watcher, <-chan []Socket) {
	t.Helper()
	changes := make(chan []Socket, 1000)
	w, err := Watch(Config{Dump: visit(t, target).Diag, Events: visit(t, target).Diag, Changed: func(s []Socket) { changes <- s }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, changes
}

func change(t testing.TB, changes <-chan []Socket) []Socket {
	t.Helper()
	select {
	case s := <-changes:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no change was told")
		return nil
	}
}

func TestWatcherSeesBirthsAndDeaths(t *testing.T) {
	usertest.AsUser(t)
	target := inhabited(t)
	w, changes := watch(t, target)
	if s := change(t, changes); len(s) != 0 {
		t.Fatalf("at first: %+v", s)
	}
	for _, addr := range []string{"127.0.0.1:8000", "[::1]:8000"} {
		l := listen(t, target, addr)
		if s := change(t, changes); len(s) != 1 || s[0].Bound.String() != addr {
			t.Fatalf("after a birth: %+v", s)
		}
		deaths := w.Stats().Deaths
		l.Close()
		if s := change(t, changes); len(s) != 0 {
			t.Fatalf("after a death: %+v", s)
		}
		if w.Stats().Deaths == deaths {
			t.Errorf("%s: the death was found by asking only", addr)
		}
	}
	for _, kind := range []handoff.SocketKind{handoff.SocketUDP4, handoff.SocketUDP6} {
		fd := sockets(t, target, kind, 1)[0]
		bindUDP(t, fd, map[handoff.SocketKind]string{handoff.SocketUDP4: "0.0.0.0:53", handoff.SocketUDP6: "[::]:53"}[kind])
		if s := change(t, changes); len(s) != 1 || !s[0].UDP {
			t.Fatalf("%s: after a birth: %+v", kind, s)
		}
		deaths := w.Stats().Deaths
		unix.Close(fd)
		if s := change(t, changes); len(s) != 0 {
			t.Fatalf("%s: after a death: %+v", kind, s)
		}
		if w.Stats().Deaths == deaths {
			t.Errorf("%s: the death was found by asking only", kind)
		}
	}
}

// Connections come and go without waking the Watcher.
func TestWatcherIsNotWokenByConnections(t *testing.T) {
	usertest.AsUser(t)
	target := inhabited(t)
	l := listen(t, target, "127.0.0.1:8000")
	w, changes := watch(t, target)
	change(t, changes)
	before := w.Stats()
	const n = 64
	for _, fd := range sockets(t, target, handoff.SocketTCP4, n) {
		err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 8000})
		if err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		c.Close()
	}
	l.Close()
	if s := change(t, changes); len(s) != 0 {
		t.Fatalf("after the death: %+v", s)
	}
	if after := w.Stats(); after.Deaths-before.Deaths > n/2 {
		t.Errorf("%d deaths were told for one listener's", after.Deaths-before.Deaths)
	}
}

func TestWatchTakesItsSocketsOver(t *testing.T) {
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := null(), null()
	if _, err := Watch(Config{Dump: a, Events: b}); err == nil {
		t.Error("/dev/null was watched")
	}
	if a.Close() == nil || b.Close() == nil {
		t.Error("a socket was left open")
	}
}

func TestCloseIsQuick(t *testing.T) {
	usertest.AsUser(t)
	target := inhabited(t)
	for range 20 {
		w, changes := watch(t, target)
		change(t, changes)
		w.Close()
	}
}

func BenchmarkDump(b *testing.B) {
	target := inhabited(b)
	diag := visit(b, target).Diag
	for range 20 {
		listen(b, target, "127.0.0.1:0")
	}
	for b.Loop() {
		if _, _, err := Dump(diag); err != nil {
			b.Fatal(err)
		}
	}
}
