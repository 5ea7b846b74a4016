package express

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/usertest"
)

// nested is what Docker and CNI plugins make: a bridge with a container behind it,
// masquerade, marks and chains of their own.
const nested = `set -e
	echo 1 >/proc/sys/net/ipv4/ip_forward
	ip link add br0 type bridge; ip addr add 172.17.0.1/16 dev br0; ip link set br0 up
	ip link add in0 type veth peer name in1; ip link set in0 master br0 up; ip link set in1 up
	nft -f - <<'RULES'
table ip nat {
	chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local counter accept; }
	chain OUTPUT { type nat hook output priority -100; ip daddr != 127.0.0.0/8 fib daddr type local counter accept; }
	chain POSTROUTING { type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 oifname != "br0" counter masquerade; }
}
table ip filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; ct state established,related accept; iifname "br0" accept; }
}
table ip mangle {
	chain OUTPUT { type route hook output priority mangle; meta mark set meta mark | 0x2000; }
	chain POSTROUTING { type filter hook postrouting priority mangle; meta mark & 0x4000 == 0x4000 meta mark set meta mark ^ 0x4000; }
}
RULES
`

// Flows of containers behind a bridge keep crossing the interface, and ours go over
// beside them.
func TestNested(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	w.in(t, nested)
	foreign := w.in(t, "nft list table ip nat; nft list table ip filter; nft list table ip mangle")
	for range 3 {
		for _, proto := range []string{"tcp", "udp"} {
			w.forget()
			w.inner(t, proto)
			f := w.await(t, remote4, 1)
			if f.src.Addr() != container4 {
				t.Fatalf("%s: not masqueraded: %s", proto, f.src)
			}
			// Whoever takes it for one of ours and writes it back gains nothing and does
			// the flow no harm.
			w.writeBack(t, f)
			if ready(int(w.path.TCP4.Fd()), unix.POLLIN, 0) {
				t.Errorf("%s: a nested flow's SYN that is written back is accepted", proto)
			}
			if ready(int(w.path.UDP4.Fd()), unix.POLLIN, 0) {
				got, from, to := receive(t, int(w.path.UDP4.Fd()))
				t.Logf("%s: a nested flow's datagram that is written back arrives: %q from %s (%s on the interface) to %s", proto, got, from, f.src, to)
			}
			w.inner(t, proto)
			w.await(t, remote4, 2)
		}
	}
	w.forget()
	w.works(t)
	for _, remote := range []netip.AddrPort{remote4, remote6} {
		if list := w.seen(remote); len(list) != 2 {
			t.Errorf("%s: %d frames, want 2: %s", remote, len(list), describe(list))
		}
	}
	check(t, w.path.Repair())
	check(t, w.path.Close())
	now := w.in(t, "nft list table ip nat; nft list table ip filter; nft list table ip mangle")
	if counters.ReplaceAllString(now, "") != counters.ReplaceAllString(foreign, "") {
		t.Errorf("other tables have changed:\n%s\nwant\n%s", now, foreign)
	}
}

// Masquerading everything, the container's own flows included, changes nothing for them.
func TestMasqueradedFlows(t *testing.T) {
	needs(t, "nft")
	usertest.AsUser(t)
	for _, match := range []string{"", `oifname "tap0"`, `oifname != "lo"`} {
		for _, early := range []bool{true, false} {
			w := newWorld(t, endpoints[1])
			if !early {
				w.express(t)
			}
			w.in(t, `nft add table inet other; nft 'add chain inet other c { type nat hook postrouting priority srcnat; }'; nft add rule inet other c `+match+` masquerade`)
			if early {
				w.express(t)
			}
			w.works(t)
			for _, remote := range []netip.AddrPort{remote4, remote6} {
				if list := w.seen(remote); len(list) != 2 {
					t.Errorf("%q: %s: %d frames, want 2: %s", match, remote, len(list), describe(list))
				}
			}
		}
	}
}

// Who drops what comes in keeps flows from going over; the engine can tell, because
// nothing is there to accept, and the client goes on asking.
func TestPolicyDrop(t *testing.T) {
	needs(t, "nft")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	w.in(t, `nft add table inet other; nft 'add chain inet other c { type filter hook input priority filter; policy drop; }'
		nft add rule inet other c ct state established,related accept; nft add rule inet other c iif lo accept`)
	c := w.connect(t, netip.AddrPort{}, remote4)
	syn := w.await(t, remote4, 1)
	w.writeBack(t, syn)
	if _, _, err := unix.Accept(int(w.path.TCP4.Fd())); err != unix.EAGAIN {
		t.Errorf("accept: %v, want EAGAIN", err)
	}
	w.answerSYN(t, syn) // the universal way goes on as if nothing had happened
	if !ready(c, unix.POLLOUT, patience) {
		t.Fatal("not connected")
	}
	if _, err := unix.Write(c, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	w.await(t, remote4, 3)
}

// A socket that is bound to the interface would not take answers from lo. Its flow must
// not go over; sock_diag's exact question, for no interface, does not find it.
func TestBoundToDevice(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	c := w.socket(t, remote4.Addr(), unix.SOCK_STREAM)
	check(t, unix.SetsockoptString(c, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "tap0"))
	if err := unix.Connect(c, sockaddr(remote4)); err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	syn := w.await(t, remote4, 1)
	if w.known(t, syn) {
		t.Error("sock_diag finds a socket that is bound to an interface")
	}
	w.answerSYN(t, syn)
	if !ready(c, unix.POLLOUT, patience) {
		t.Fatal("not connected")
	}
	other := w.connect(t, netip.AddrPort{}, remote4)
	defer unix.Close(other)
	if syn := w.await(t, remote4, 3); !syn.syn() || !w.known(t, syn) {
		t.Error("sock_diag does not find a socket that is not")
	}
}
