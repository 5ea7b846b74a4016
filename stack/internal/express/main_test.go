package express

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
	"github.com/postern-net/postern/stack/stacktest"
)

// The tests run in a network namespace of their own, which plays the host and the
// container at once: the container's address and its target are local ones, and the
// handshake that the container's kernel would run with our listener, by our rules, is
// that of a plain connect to the listener, which has the target's address.
func TestMain(m *testing.M) {
	os.Exit(stacktest.RunChecked(func() int { return nstest.Main(m) }))
}

// side is what a test needs of a family.
type side struct {
	name                        string
	inside, listener, outside   netip.Addr
	unreachable, prohibited     netip.Prefix
	unreachableIP, prohibitedIP netip.Addr
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var sides = []side{
	{
		"IPv4", addr("10.0.2.100"), addr("192.0.2.1"), addr("127.0.0.1"),
		netip.MustParsePrefix("203.0.113.64/26"), netip.MustParsePrefix("203.0.113.128/26"), addr("203.0.113.65"), addr("203.0.113.129"),
	},
	{
		"IPv6", addr("fd00::100"), addr("2001:db8::1"), addr("::1"),
		netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:2::/48"), addr("2001:db8:1::1"), addr("2001:db8:2::1"),
	},
}

// world gives the namespace its addresses and routes.
var world = sync.OnceValue(func() error {
	for _, s := range sides {
		for _, a := range []netip.Addr{s.inside, s.listener} {
			if err := nstest.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
				return err
			}
		}
		if err := nstest.AddRoute(s.unreachable, netip.Addr{}, unix.RTN_UNREACHABLE); err != nil {
			return err
		}
		if err := nstest.AddRoute(s.prohibited, netip.Addr{}, unix.RTN_PROHIBIT); err != nil {
			return err
		}
	}
	return nil
})

// sender is a link that keeps what is sent.
type sender struct {
	flows *flow.Table

	mu          sync.Mutex
	onReinject  func(p link.Packet) error
	reinjected  []link.Packet
	resubmitted []link.Packet
	held        int // resubmitted while the flow was still in the table
	resets      []link.Packet
	errors      []icmp.Kind
}

func clone(p link.Packet) link.Packet {
	p.Bytes = append([]byte(nil), p.Bytes...)
	return p
}

func (s *sender) Reinject(p link.Packet) error {
	s.mu.Lock()
	s.reinjected = append(s.reinjected, clone(p))
	fn := s.onReinject
	s.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(p)
}

func (s *sender) Resubmit(p link.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows.Has(keyOf(p)) {
		s.held++
	}
	s.resubmitted = append(s.resubmitted, clone(p))
}

func (s *sender) SendReset(p link.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resets = append(s.resets, clone(p))
}

func (s *sender) SendError(kind icmp.Kind, _ uint32, _, _ netip.Addr, _ []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors = append(s.errors, kind)
}

// sent is how many packets of each sort there were.
func (s *sender) sent() (reinjected, resubmitted, resets, errs int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reinjected), len(s.resubmitted), len(s.resets), len(s.errors)
}

func (s *sender) hook(fn func(link.Packet) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onReinject = fn
}

func keyOf(p link.Packet) flow.Key {
	t := p.Payload(p.Bytes)
	port := func(at int) uint16 { return uint16(t[at])<<8 | uint16(t[at+1]) }
	return flow.Key{Proto: flow.TCP, Initiating: netip.AddrPortFrom(p.Src, port(0)), Target: netip.AddrPortFrom(p.Dst, port(2))}
}

// fakeDiag says synSent unless told otherwise.
type fakeDiag struct {
	mu    sync.Mutex
	all   state
	err   error
	asked int
}

func (d *fakeDiag) state(flow.Key) (state, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	return d.all, d.err
}

func (d *fakeDiag) say(s state, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all, d.err = s, err
}

// rig is an Out with a listener of one family.
type rig struct {
	*Out
	side
	flows  *flow.Table
	sender *sender
	diag   *fakeDiag
	target netip.AddrPort
	lost   int
	// clients are the container's ends, once connected.
	clients chan *net.TCPConn
}

// eachSide runs a test for both families.
func eachSide(t *testing.T, loops int, fn func(t *testing.T, r *rig)) {
	for _, s := range sides {
		t.Run(s.name, func(t *testing.T) { fn(t, newRig(t, s, loops, 0)) })
	}
}

func newRig(t testing.TB, s side, loops, most int) *rig {
	t.Helper()
	if err := world(); err != nil {
		t.Fatal(err)
	}
	stacktest.NoLeaks(t)
	r := &rig{side: s, flows: flow.NewTable(), diag: &fakeDiag{all: synSent}, clients: make(chan *net.TCPConn, 1024)}
	r.sender = &sender{flows: r.flows}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.listener, 0)))
	if err != nil {
		t.Fatal(err)
	}
	r.target = l.Addr().(*net.TCPAddr).AddrPort()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	ls, err := relay.NewLoops(loops)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Loops: ls, Flows: r.flows, Sender: r.sender, Plan: netplan.Default(), MaxFlows: most, Lost: func() { r.lost++ },
		TCP4: f,
	}
	if s.inside.Is6() {
		cfg.TCP4, cfg.TCP6 = nil, f
	}
	r.Out, err = newOut(cfg, r.diag)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	r.sender.hook(r.connect)
	t.Cleanup(func() {
		r.Close()
		ls.Close()
		if n := r.flows.Len(flow.TCP); n != 0 {
			t.Errorf("%d flows are left", n)
		}
		for {
			select {
			case c := <-r.clients:
				c.Close()
				continue
			default:
			}
			break
		}
	})
	return r
}

// connect is what the container's kernel does with a SYN that was written back.
func (r *rig) connect(p link.Packet) error {
	k := keyOf(p)
	reuse := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(k.Initiating), Timeout: stacktest.Patience, Control: reuse}
	c, err := d.Dial("tcp", k.Target.String())
	if err == nil {
		r.clients <- c.(*net.TCPConn)
	}
	return err
}

// key is that of a client which has not connected before.
func (r *rig) key() flow.Key {
	return flow.Key{Proto: flow.TCP, Initiating: netip.AddrPortFrom(r.inside, uint16(ports.Add(1))), Target: r.target}
}

// ports are below those that the kernel hands out.
var ports = func() *atomic.Uint32 {
	p := new(atomic.Uint32)
	p.Store(10000)
	return p
}()

// syn is the SYN of a client.
func syn(k flow.Key, seq uint32) link.Packet {
	b := stacktest.Segment{Src: k.Initiating, Dst: k.Target, Seq: seq, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}.Packet()
	h, ok := inet.Parse(b)
	if !ok {
		panic("malformed SYN")
	}
	return link.Packet{Header: h, Bytes: b}
}

// take has the Out take a SYN, which it must.
func (r *rig) take(t testing.TB, k flow.Key, dial netip.AddrPort) {
	t.Helper()
	p := syn(k, 1)
	if !r.Take(p, k, dial) {
		t.Fatalf("the SYN from %s was not taken: %v", k.Initiating, r.flows.Counters.Snapshot())
	}
	clear(p.Bytes) // it is the reader's memory
}

func (r *rig) count(c flow.Counter) uint64 { return r.flows.Counters.Load(c) }

func (r *rig) await(t testing.TB, c flow.Counter, n uint64) {
	t.Helper()
	stacktest.Eventually(t, c.String(), func() bool { return r.count(c) == n })
}

// empty waits until there is no connection.
func (r *rig) empty(t testing.TB) {
	t.Helper()
	stacktest.Eventually(t, "all connections to end", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.conns) == 0 && r.flows.Len(flow.TCP) == 0
	})
}

// server is a host that somebody listens on.
func (r *rig) server(t testing.TB) (netip.AddrPort, *net.TCPListener) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.outside, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort(), l
}

// hanging is a server whose queue is full: it answers nobody until the function
// returned has been called.
func (r *rig) hanging(t testing.TB) (netip.AddrPort, func()) {
	t.Helper()
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if r.outside.Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: r.outside.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	at := sockcall.LocalAddr(fd)
	filler, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filler.Close()
		unix.Close(fd)
	})
	return at, func() {
		if n, _, err := unix.Accept(fd); err == nil {
			unix.Close(n)
		}
	}
}

// client returns the container's end of the next connection.
func (r *rig) client(t testing.TB) *net.TCPConn {
	t.Helper()
	select {
	case c := <-r.clients:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(stacktest.Patience):
		t.Fatalf("no client is connected: %v", r.flows.Counters.Snapshot())
		return nil
	}
}

func accepted(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(stacktest.Patience))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// wantReset reads until the connection's reset.
func wantReset(t testing.TB, who string, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(stacktest.Patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s reads %v, want a reset", who, err)
	}
}
