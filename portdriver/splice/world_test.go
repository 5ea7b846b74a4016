package splice

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/stacktest"
)

// Everything is on the loopback device: the container has two addresses there, and
// ordinary sockets take the place of transparent ones. A client shows 127.0.0.1 or
// ::1 with its port, since both it and the container are on loopback, so clients are
// elsewhere in 127.0.0.0/8 or let their address be used again.
var (
	container4 = netip.MustParseAddr("127.0.0.10")
	container6 = netip.MustParseAddr("::1")
	loopback4  = netip.MustParseAddr("127.0.0.1")
	gateway4   = netip.MustParseAddr("127.0.0.2")
	anywhere   = portdriver.Addresses{Container4: container4, Gateway4: gateway4, Container6: container6, Gateway6: container6}
)

// world is a driver with what it needs.
type world struct {
	testing.TB
	*Driver
	stock *stock.Stock
	loops *relay.Loops
	cfg   Config

	mu   sync.Mutex
	deaf bool // orders bring nothing
}

// newWorld starts a driver. Nothing of it may be left at the end of the test.
func newWorld(tb testing.TB, change func(*Config)) *world {
	tb.Helper()
	stacktest.NoLeaks(tb)
	forgetful(tb)
	w := &world{TB: tb}
	w.stock = stock.New(w.order, 256)
	tb.Cleanup(w.stock.Close)
	loops, err := relay.NewLoops(2)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(loops.Close)
	w.loops = loops
	w.cfg = Config{Addresses: anywhere, Loops: loops, Stock: w.stock}
	if change != nil {
		change(&w.cfg)
	}
	if w.Driver, err = New(w.cfg); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(w.Driver.Close)
	return w
}

func (w *world) order(kind handoff.SocketKind, n int) {
	w.mu.Lock()
	deaf := w.deaf
	w.mu.Unlock()
	if !deaf {
		w.stock.Deliver(kind, ordinary(w, kind, n))
	}
}

func (w *world) setDeaf(deaf bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = deaf
}

// ordinary makes sockets as they come from the container's netns, but for the
// options that need privileges.
func ordinary(tb testing.TB, kind handoff.SocketKind, n int) (fds []int) {
	domain := unix.AF_INET
	if kind == handoff.SocketTCP6 {
		domain = unix.AF_INET6
	}
	for range n {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			tb.Error(err)
			return fds
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			tb.Error(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// publish opens a listener on a free port and returns its address.
func (w *world) publish(l portdriver.Listener, host string) netip.AddrPort {
	w.Helper()
	return w.serve(l, listenTCP(w, host+":0"))
}

// serve opens a listener on a bound TCP socket.
func (w *world) serve(l portdriver.Listener, on *net.TCPListener) netip.AddrPort {
	w.Helper()
	l.Network, l.Bound, l.File = portdriver.NetTCP, addrOf(on.Addr()), fileOf(w, on)
	if err := w.Open(l); err != nil {
		w.Fatal(err)
	}
	on.Close() // the driver has a copy
	return l.Bound
}

func fileOf(tb testing.TB, l interface{ File() (*os.File, error) }) *os.File {
	tb.Helper()
	f, err := l.File()
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func listenTCP(tb testing.TB, addr string) *net.TCPListener {
	tb.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func addrOf(a net.Addr) netip.AddrPort {
	return a.(*net.TCPAddr).AddrPort()
}

// echo is a server that tells each client its address, then sends back what comes.
func echo(tb testing.TB, l net.Listener) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := io.WriteString(c, c.RemoteAddr().String()+"\n"); err == nil {
					// Not by splice: Go keeps the pipes until they are collected as garbage.
					_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				}
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// server starts echo on a free port of an address and returns that.
func server(tb testing.TB, addr netip.Addr) netip.AddrPort {
	tb.Helper()
	l := listenTCP(tb, netip.AddrPortFrom(addr, 0).String())
	echo(tb, l)
	return addrOf(l.Addr())
}

// client is a connection to a published port.
type client struct {
	net.Conn
	r *bufio.Reader
}

// dial connects a client that is at an address; "" leaves that to the kernel.
func dial(tb testing.TB, from string, to netip.AddrPort) *client {
	tb.Helper()
	c, err := tryDial(from, to)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func tryDial(from string, to netip.AddrPort) (*client, error) {
	d := net.Dialer{Timeout: stacktest.Patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
		err = errors.Join(err, c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				// As where client and server have networks of their own, the port is
				// not bound by number.
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
		}))
		return err
	}}
	if from != "" {
		a := netip.MustParseAddrPort(from)
		d.LocalAddr = net.TCPAddrFromAddrPort(a)
	}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	return newClient(c), nil
}

func newClient(c net.Conn) *client {
	_ = c.SetDeadline(time.Now().Add(stacktest.Patience))
	return &client{c, bufio.NewReader(c)}
}

// seen returns the address that the server sees.
func (c *client) seen(tb testing.TB) string {
	tb.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		tb.Fatalf("the server's greeting: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// talk sends b and wants it back.
func (c *client) talk(tb testing.TB, b []byte) {
	tb.Helper()
	if err := c.exchange(b); err != nil {
		tb.Fatal(err)
	}
}

func (c *client) exchange(b []byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		sent <- err
	}()
	got := make([]byte, len(b))
	_, err := io.ReadFull(c.r, got)
	err = errors.Join(err, <-sent)
	if err == nil && !bytes.Equal(got, b) {
		return errors.New("the echo differs")
	}
	return err
}

// wasReset wants the connection to have been reset.
func (c *client) wasReset(tb testing.TB) {
	tb.Helper()
	if b, err := io.ReadAll(c.r); !errors.Is(err, syscall.ECONNRESET) {
		tb.Errorf("read %q, %v; want ECONNRESET", b, err)
	}
}

// refused wants a client to be reset, at once or when it reads: the reset may be there
// before its connect has returned.
func refused(tb testing.TB, port netip.AddrPort) {
	tb.Helper()
	c, err := tryDial("", port)
	if err == nil {
		defer c.Close()
		c.wasReset(tb)
	} else if !errors.Is(err, syscall.ECONNRESET) {
		tb.Error(err)
	}
}

// counted waits for a counter.
func (w *world) counted(c portdriver.Counter, want uint64) {
	w.Helper()
	defer func() {
		if got := w.counters.Load(c); got != want {
			w.Errorf("%s is %d, want %d: %v", c, got, want, w.Status().Counters)
		}
	}()
	for end := time.Now().Add(stacktest.Patience); time.Now().Before(end) && w.counters.Load(c) < want; {
		time.Sleep(time.Millisecond)
	}
}

// forgetful has the kernel remember no connection that has ended, for as long as this
// process has its namespace. A client or a socket that was bound by number keeps its port
// for a minute otherwise (TIME_WAIT), and there are thousands, while clients show an
// address that others have had.
func forgetful(tb testing.TB) {
	tb.Helper()
	if err := nstest.Sysctl("net/ipv4/tcp_max_tw_buckets", "0"); err != nil {
		tb.Fatal(err)
	}
}
