package stack_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

// world is a running engine between a container and the host.
type world struct {
	*stack.Engine
	g     *guest.Guest
	stop  context.CancelFunc
	ended chan error
}

// each runs a test over both kinds of device, at the smallest usual and the
// default MTU.
func each(t *testing.T, body func(t *testing.T, w *world)) {
	for _, kind := range guest.Kinds {
		for _, mtu := range []int{1500, stack.MaxMTU} {
			t.Run(fmt.Sprintf("%s/mtu %d", kind, mtu), func(t *testing.T) { body(t, newWorld(t, kind, mtu, nil)) })
		}
	}
}

func newWorld(t *testing.T, kind tap.Kind, mtu int, change func(*stack.Config)) *world {
	t.Helper()
	w := startWorld(t, kind, mtu, change)
	w.g.Configure(t, netplan.Default())
	return w
}

// startWorld is newWorld without addresses on the container's interface.
func startWorld(t *testing.T, kind tap.Kind, mtu int, change func(*stack.Config)) *world {
	t.Helper()
	stacktest.NoLeaks(t)
	if err := lan(); err != nil {
		t.Fatal(err)
	}
	g := guest.New(t, kind, mtu)
	dev, err := tap.New(g.Device, kind)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stack.Config{Device: dev, MTU: mtu, ContainerMAC: g.MAC, Static: true}
	if change != nil {
		change(&cfg)
	}
	e, err := stack.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Engine: e, g: g, ended: make(chan error, 1)}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	go func() { w.ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		w.stop()
		select {
		case err := <-w.ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(stacktest.Patience):
			t.Error("Run has not returned")
		}
	})
	return w
}

// dial connects a socket of the container.
func (w *world) dial(t *testing.T, network string, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	var conn net.Conn
	var err error
	w.g.Do(t, func() error {
		conn, err = net.DialTimeout(network, to.String(), stacktest.Patience)
		return nil
	})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(3 * stacktest.Patience))
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func (w *world) mustDial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := w.dial(t, network, to)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// listen opens a TCP listener of the host.
func listen(t *testing.T, at netip.Addr) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

// echo serves connections by sending everything back. It does without splice(2),
// whose pipes Go keeps open for a while.
func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
		}()
	}
}

// random returns n bytes that depend on the seed.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}
