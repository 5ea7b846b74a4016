package stacktest

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
)

// Dialer plays the host's network for outgoing TCP: its Dial is a
// tcpout.Dialer. Targets that were not prepared are refused.
type Dialer struct {
	mu    sync.Mutex // guards the fields below
	plans map[netip.AddrPort]plan
	calls map[netip.AddrPort]int
}

// plan is what happens to dials of one target.
type plan struct {
	err      error
	hang     bool
	listener *net.TCPListener
	accepted chan *net.TCPConn
}

func (d *Dialer) set(target netip.AddrPort, p plan) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.plans == nil {
		d.plans = make(map[netip.AddrPort]plan)
	}
	d.plans[target] = p
}

// Hang makes dials of target last until their context ends.
func (d *Dialer) Hang(target netip.AddrPort) { d.set(target, plan{hang: true}) }

// Fail makes dials of target fail as connect(2) would.
func (d *Dialer) Fail(target netip.AddrPort, errno syscall.Errno) {
	d.set(target, plan{err: refusal(target, errno)})
}

// FailWith makes dials of target fail with err.
func (d *Dialer) FailWith(target netip.AddrPort, err error) { d.set(target, plan{err: err}) }

// Serve makes dials of target succeed. The servers' ends of at most 1,024
// connections wait in the channel; the caller closes those that it takes.
func (d *Dialer) Serve(tb testing.TB, target netip.AddrPort) <-chan *net.TCPConn {
	tb.Helper()
	l := listenLoopback(tb)
	p := plan{listener: l, accepted: make(chan *net.TCPConn, queueLen)}
	d.set(target, p)
	tb.Cleanup(func() {
		for {
			select {
			case c := <-p.accepted:
				c.Close()
			default:
				return
			}
		}
	})
	return p.accepted
}

// Calls returns how often target was dialled.
func (d *Dialer) Calls(target netip.AddrPort) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[target]
}

// Dial opens a connection as prepared.
func (d *Dialer) Dial(ctx context.Context, target netip.AddrPort) (*net.TCPConn, error) {
	d.mu.Lock()
	if d.calls == nil {
		d.calls = make(map[netip.AddrPort]int)
	}
	d.calls[target]++
	p, ok := d.plans[target]
	d.mu.Unlock()
	switch {
	case !ok:
		return nil, refusal(target, syscall.ECONNREFUSED)
	case p.hang:
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(target), Err: ctx.Err()}
	case p.err != nil:
		return nil, p.err
	}
	host, server, err := connect(p.listener)
	if err != nil {
		return nil, err
	}
	p.accepted <- server
	return host, nil
}

func refusal(target netip.AddrPort, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(target), Err: os.NewSyscallError("connect", errno)}
}

// TCPPair returns the two ends of a connection over the loopback device. They
// are closed with the test.
func TCPPair(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	a, b, err := connect(listenLoopback(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

func listenLoopback(tb testing.TB) *net.TCPListener {
	tb.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

// connecting keeps concurrent callers from taking each other's connection.
var connecting sync.Mutex

func connect(l *net.TCPListener) (dialled, accepted *net.TCPConn, err error) {
	connecting.Lock()
	defer connecting.Unlock()
	dialled, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, nil, err
	}
	accepted, err = l.AcceptTCP()
	if err != nil {
		dialled.Close()
		return nil, nil, err
	}
	return dialled, accepted, nil
}
