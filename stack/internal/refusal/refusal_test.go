package refusal

import (
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
)

type sent struct {
	kind     icmp.Kind
	from, to netip.Addr
	quote    string
}

type sender []sent

func (s *sender) SendError(kind icmp.Kind, _ uint32, from, to netip.Addr, quote []byte) {
	*s = append(*s, sent{kind, from, to, string(quote)})
}

func TestTeller(t *testing.T) {
	key := flow.Key{Proto: flow.TCP, Initiating: netip.MustParseAddrPort("10.0.2.100:1"), Target: netip.MustParseAddrPort("192.0.2.1:2")}
	for _, c := range []struct {
		errno syscall.Errno
		reset bool
		kind  icmp.Kind
		count flow.Counter
	}{
		{syscall.ECONNREFUSED, true, 0, flow.TCPDialFailed},
		{syscall.EHOSTUNREACH, false, icmp.HostUnreachable, flow.TCPDialFailed},
		{syscall.EPERM, false, icmp.AdminProhibited, flow.TCPDialFailed},
		{syscall.ETIMEDOUT, false, 0, flow.TCPDialTimeout},
		{syscall.EMFILE, false, 0, flow.TCPDialTimeout},
	} {
		var counters flow.Counters
		var s sender
		teller := Teller{Counters: &counters, Sender: &s, Plan: netplan.Default()}
		answer := teller.Judge(os.NewSyscallError("connect", c.errno))
		if len(s) != 0 {
			t.Errorf("%v: told too early", c.errno)
		}
		teller.Tell(answer, key, []byte("quote"))
		if answer.Reset != c.reset || counters.Load(c.count) != 1 || len(counters.Snapshot()) != 1 {
			t.Errorf("%v: %+v, %v", c.errno, answer, counters.Snapshot())
		}
		if c.kind == 0 {
			if len(s) != 0 {
				t.Errorf("%v: sent %v", c.errno, s)
			}
			continue
		}
		want := sent{c.kind, netplan.Default().V4.Gateway, key.Initiating.Addr(), "quote"}
		if len(s) != 1 || s[0] != want {
			t.Errorf("%v: sent %v, want %v", c.errno, s, want)
		}
	}
}
