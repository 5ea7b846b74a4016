package express

import (
	"net/netip"
	"testing"

	"github.com/postern-net/postern/userns/internal/usertest"
)

// settings that others make must not matter.
func TestForeignSettings(t *testing.T) {
	usertest.AsUser(t)
	for _, set := range []string{
		"for i in all lo tap0; do echo 1 >/proc/sys/net/ipv4/conf/$i/rp_filter; done",
		"for i in all lo tap0; do echo 2 >/proc/sys/net/ipv4/conf/$i/rp_filter; done",
		"echo 1 >/proc/sys/net/ipv4/conf/all/src_valid_mark; echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter",
		"echo 1 >/proc/sys/net/ipv4/tcp_fwmark_accept; echo 1 >/proc/sys/net/ipv4/fwmark_reflect; echo 1 >/proc/sys/net/ipv6/fwmark_reflect",
		"for f in 4 6; do echo 1 >/proc/sys/net/ipv$f/conf/all/forwarding; done",
		"echo 0 >/proc/sys/net/ipv4/ip_early_demux; echo 0 >/proc/sys/net/ipv4/tcp_early_demux; echo 0 >/proc/sys/net/ipv4/udp_early_demux",
	} {
		t.Run(set, func(t *testing.T) {
			w := newWorld(t, endpoints[1])
			w.express(t)
			w.in(t, set)
			for _, remote := range []netip.AddrPort{remote4, remote6} {
				client, server, _ := w.hand(t, netip.AddrPort{}, remote)
				exchange(t, client, server, 1<<18)
				w.overUDP(t, remote)
				if list := w.seen(remote); len(list) != 2 {
					t.Errorf("%s: %d frames crossed the interface, want 2: %s", remote, len(list), describe(list))
				}
			}
		})
	}
}
