package hosterr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/netplan"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Outcome
	}{
		{nil, Outcome{}},
		{errors.New("anything"), Outcome{}},
		{context.DeadlineExceeded, Outcome{}},
		{syscall.ECONNREFUSED, Outcome{true, icmp.PortUnreachable}},
		{syscall.ECONNRESET, Outcome{true, icmp.PortUnreachable}},
		{syscall.ENOPROTOOPT, Outcome{true, icmp.PortUnreachable}},
		{syscall.EHOSTUNREACH, Outcome{Kind: icmp.HostUnreachable}},
		{syscall.EHOSTDOWN, Outcome{Kind: icmp.HostUnreachable}},
		{syscall.ENETUNREACH, Outcome{Kind: icmp.NetUnreachable}},
		{syscall.ENETDOWN, Outcome{Kind: icmp.NetUnreachable}},
		{syscall.EADDRNOTAVAIL, Outcome{Kind: icmp.NetUnreachable}},
		{syscall.EAFNOSUPPORT, Outcome{Kind: icmp.NetUnreachable}},
		{syscall.EACCES, Outcome{Kind: icmp.AdminProhibited}},
		{syscall.EPERM, Outcome{Kind: icmp.AdminProhibited}},
		{syscall.EMSGSIZE, Outcome{Kind: icmp.FragmentationNeeded}},
		{syscall.ETIMEDOUT, Outcome{}},
		{syscall.EMFILE, Outcome{}},
		{syscall.ENFILE, Outcome{}},
		{syscall.ENOBUFS, Outcome{}},
		{syscall.EAGAIN, Outcome{}},
		{syscall.EINVAL, Outcome{}},
		{os.NewSyscallError("connect", syscall.ECONNREFUSED), Outcome{true, icmp.PortUnreachable}},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, Outcome{Kind: icmp.HostUnreachable}},
		{fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}), Outcome{Kind: icmp.NetUnreachable}},
	} {
		if got := Of(c.err); got != c.want {
			t.Errorf("Of(%v) = %+v, want %+v", c.err, got, c.want)
		}
		if got, want := Of(c.err).Silent(), c.want == (Outcome{}); got != want {
			t.Errorf("Of(%v).Silent() = %v", c.err, got)
		}
	}
}

func TestReporter(t *testing.T) {
	plan := netplan.Default()
	for _, c := range []struct {
		kind                   icmp.Kind
		offender, target, want string
	}{
		{icmp.PortUnreachable, "192.0.2.1", "198.51.100.1", "198.51.100.1"},
		{icmp.PortUnreachable, "127.0.0.1", "10.0.2.2", "10.0.2.2"},
		{icmp.TimeExceeded, "192.0.2.1", "198.51.100.1", "192.0.2.1"},
		{icmp.TimeExceeded, "::ffff:192.0.2.1", "198.51.100.1", "192.0.2.1"},
		{icmp.TimeExceeded, "10.0.2.9", "198.51.100.1", "10.0.2.2"},
		{icmp.TimeExceeded, "127.0.0.1", "198.51.100.1", "10.0.2.2"},
		{icmp.TimeExceeded, "169.254.1.1", "198.51.100.1", "10.0.2.2"},
		{icmp.TimeExceeded, "", "198.51.100.1", "10.0.2.2"},
		{icmp.TimeExceeded, "2001:db8::1", "198.51.100.1", "10.0.2.2"},
		{icmp.TimeExceeded, "2001:db8::1", "2001:db8:9::1", "2001:db8::1"},
		{icmp.TimeExceeded, "fe80::1", "2001:db8:9::1", "fd00::2"},
		{icmp.TimeExceeded, "", "2001:db8:9::1", "fd00::2"},
		{icmp.HostUnreachable, "192.0.2.1", "198.51.100.1", "10.0.2.2"},
		{icmp.NetUnreachable, "192.0.2.1", "198.51.100.1", "10.0.2.2"},
		{icmp.AdminProhibited, "2001:db8::1", "2001:db8:9::1", "fd00::2"},
		{icmp.FragmentationNeeded, "192.0.2.1", "198.51.100.1", "10.0.2.2"},
	} {
		var offender netip.Addr
		if c.offender != "" {
			offender = netip.MustParseAddr(c.offender)
		}
		got := Reporter(c.kind, offender, netip.MustParseAddr(c.target), plan)
		if got != netip.MustParseAddr(c.want) {
			t.Errorf("Reporter(%v, %q, %s) = %v, want %s", c.kind, c.offender, c.target, got, c.want)
		}
	}
}
