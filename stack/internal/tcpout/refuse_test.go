package tcpout

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestRefusedPortLooksRefused(t *testing.T) {
	for _, f := range families {
		r := newRig(t)
		for range 3 { // the same four addresses again and again
			r.send(t, syn(f.inside, f.target))
			stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Src(f.target.Addr()), stacktest.Dst(f.inside.Addr()),
				stacktest.TCP(stacktest.SrcPort(f.target.Port()), stacktest.DstPort(f.inside.Port()),
					stacktest.Flags(stacktest.RST|stacktest.ACK), stacktest.AckNum(1001)))
			r.idle(t)
		}
		if r.dialer.Calls(f.target) != 3 || r.count(flow.TCPDialFailed) != 3 {
			t.Errorf("%s: %d dials, %v", f.name, r.dialer.Calls(f.target), r.flows.Counters.Snapshot())
		}
	}
}

func TestUnreachableIsToldAsSuch(t *testing.T) {
	for _, f := range families {
		gateway := netplan.Default().Of(f.inside.Addr()).Gateway
		for errno, kind := range map[syscall.Errno]icmp.Kind{
			syscall.EHOSTUNREACH:  icmp.HostUnreachable,
			syscall.EHOSTDOWN:     icmp.HostUnreachable,
			syscall.ENETUNREACH:   icmp.NetUnreachable,
			syscall.ENETDOWN:      icmp.NetUnreachable,
			syscall.EADDRNOTAVAIL: icmp.NetUnreachable,
			syscall.EACCES:        icmp.AdminProhibited,
			syscall.EPERM:         icmp.AdminProhibited,
		} {
			r := newRig(t)
			r.dialer.Fail(f.target, errno)
			sent := r.send(t, syn(f.inside, f.target))
			stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Src(gateway), stacktest.Dst(f.inside.Addr()),
				stacktest.ICMPError(kind, sent))
			r.idle(t)
			r.peer.Silent(t)
			if r.count(flow.TCPDialFailed) != 1 || r.count(flow.ICMPErrorsSent) != 1 {
				t.Errorf("%s, %v: %v", f.name, errno, r.flows.Counters.Snapshot())
			}
		}
	}
}

func TestTimeoutsAndLocalTroubleAreSilence(t *testing.T) {
	for _, f := range families {
		for _, err := range []error{
			&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ETIMEDOUT)},
			&net.OpError{Op: "dial", Err: context.DeadlineExceeded},
			&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)},
			&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EINVAL)},
		} {
			r := newRig(t)
			r.dialer.FailWith(f.target, err)
			r.send(t, syn(f.inside, f.target))
			stacktest.Eventually(t, "the failed dial", func() bool { return r.count(flow.TCPDialTimeout) == 1 })
			r.idle(t)
			r.peer.Silent(t)
		}
	}
}

func TestGuardRefusals(t *testing.T) {
	for _, f := range families {
		plan := netplan.Default().Of(f.inside.Addr())
		foreign := []string{"169.254.169.254:80", "169.254.1.1:22", "192.0.2.1:0"}
		if f.inside.Addr().Is6() {
			foreign = []string{"[fd00:ec2::254]:80", "[64:ff9b::7f00:1]:22", "[2002:7f00:1::]:22", "[fec0::1]:22", "[2001:db8::1]:0"}
		}
		for _, s := range foreign {
			target := netip.MustParseAddrPort(s)
			r := newRig(t)
			sent := r.send(t, syn(f.inside, target))
			stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Dst(f.inside.Addr()), stacktest.ICMPError(icmp.AdminProhibited, sent))
			if r.dialer.Calls(target) != 0 || r.count(flow.TCPRefusedGuard) != 1 {
				t.Errorf("%s: %d dials, %v", s, r.dialer.Calls(target), r.flows.Counters.Snapshot())
			}
		}
		// Our own addresses are hosts without that service.
		for _, target := range []netip.AddrPort{netip.AddrPortFrom(plan.Gateway, 80), netip.AddrPortFrom(plan.Gateway, 53), netip.AddrPortFrom(plan.Resolver, 80)} {
			r := newRig(t)
			r.send(t, syn(f.inside, target))
			stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Src(target.Addr()),
				stacktest.TCP(stacktest.Flags(stacktest.RST|stacktest.ACK), stacktest.AckNum(1001)))
			if r.dialer.Calls(target) != 0 || r.count(flow.TCPRefusedGuard) != 1 {
				t.Errorf("%v: %d dials, %v", target, r.dialer.Calls(target), r.flows.Counters.Snapshot())
			}
		}
	}
}

// A segment that belongs to nothing is answered as RFC 9293 section 3.10.7.1
// says, and a RST not at all.
func TestStraySegments(t *testing.T) {
	f := families[0]
	r := newRig(t)
	for _, flags := range []uint8{stacktest.ACK, stacktest.FIN | stacktest.ACK, stacktest.SYN | stacktest.ACK, stacktest.FIN, stacktest.FIN | stacktest.PSH | stacktest.URG} {
		r.send(t, stacktest.Segment{Src: f.inside, Dst: f.target, Seq: 5, Ack: 9, Flags: flags})
		stacktest.IPv4(t, r.peer.Receive(t), stacktest.Src(f.target.Addr()), stacktest.TCP())
	}
	for _, flags := range []uint8{stacktest.RST, stacktest.RST | stacktest.ACK} {
		r.send(t, stacktest.Segment{Src: f.inside, Dst: f.target, Seq: 5, Ack: 9, Flags: flags})
	}
	r.settled(t)
	r.peer.Silent(t)
	if n := r.dialer.Calls(f.target); n != 0 {
		t.Errorf("%d dials", n)
	}
}

// Linux drops a SYN that carries FIN or RST (tcp_rcv_state_process).
func TestContradictingFlagsAreDropped(t *testing.T) {
	for _, f := range families {
		r := newRig(t)
		for _, flags := range []uint8{stacktest.FIN, stacktest.RST, stacktest.FIN | stacktest.RST, stacktest.FIN | stacktest.PSH | stacktest.URG} {
			s := syn(f.inside, f.target)
			s.Flags |= flags
			r.send(t, s)
		}
		r.settled(t)
		r.peer.Silent(t)
		if n := r.dialer.Calls(f.target); n != 0 || r.flows.Len(flow.TCP) != 0 || r.count(flow.DropMalformed) != 4 {
			t.Errorf("%s: %d dials, %v", f.name, n, r.flows.Counters.Snapshot())
		}
	}
}

// settled waits until everything injected so far has been dealt with: a refused
// SYN to another target goes the same way and is answered.
func (r *rig) settled(t testing.TB) {
	t.Helper()
	from, to := netip.MustParseAddrPort("10.0.2.99:9"), netip.MustParseAddrPort("10.0.2.2:9")
	r.send(t, syn(from, to))
	for {
		f := r.peer.Receive(t)
		if p := stacktest.IPv4(t, f); p.IP.Dst == from.Addr() {
			return
		}
		t.Errorf("unexpected frame % x", f.Bytes)
	}
}
