package rtnl

// The packet marks, routing tables and rule priorities that published ports and the
// express path use in the container's network namespace. Others live there too: Docker, Kubernetes and VPN
// clients run in rootless containers, and each has its own marks. Marks are shared
// by bits, not by numbers, because others set and clear bits under a mask:
//
//	0x0000_0f00  Cilium (MARK_MAGIC_HOST_MASK)
//	0x0000_2000  CNI portmap, netavark: "masquerade"
//	0x0000_4000  kube-proxy: "masquerade"; 0x0000_8000: "drop"
//	0x00ff_0000  Tailscale (bypass 0x80000, subnet route 0x40000)
//	0xffff_0000  Calico: clears its bits on every packet that it looks at
//
// What is left of the 32 bits is PublishedMask. In it the value has to differ from
// the small numbers that everybody takes first: 1 (the kernel's tproxy.rst), 100
// (RootlessKit's builtin driver), 0x100 and up (Docker's swarm load balancer), 255
// (proxies), 1337 and 1338 (Istio; 0x111 and 0x539 under 0xfff in its ambient mode);
// and from what VPN clients compare whole: 51820 (wg-quick), 0xe1f1 (NordVPN),
// 0x6d6f6c65 (Mullvad), 0x100cf (WARP), 0x1bd00 to 0x1bdff (NetBird).
const (
	// PublishedMark is on the sockets that bring clients of published ports to the
	// container's servers (SO_MARK, socket(7)), and by tcp_fwmark_accept on the
	// servers' own sockets. The numbers up to LastMark are reserved for further paths
	// of ours that need marks of their own.
	PublishedMark = 0x1050
	// ExpressMark means that a packet belongs to a flow of the express path and stays in
	// the namespace. It is on the sockets of our side, on their flows (connection
	// tracking's mark) and from there on what the container sends on them; one number
	// is enough, since the two directions differ by their addresses.
	ExpressMark = 0x1051
	// UniversalMark is on TCP flows that netstack answers although a listener of the
	// express path did, but was not heard.
	UniversalMark = 0x1052
	LastMark      = 0x105f
	// PublishedMask is the bits that are compared: none that somebody else is
	// known to set on top.
	PublishedMask = 0x10ff

	// PublishedTable has one route a family: everything is local. Known numbers of
	// others: 52 (Tailscale), 100 (RootlessKit), 133 (Istio), 205 (NordVPN), 2004 and
	// 2005 (Cilium), 7120 (NetBird), 51820 (wg-quick), 253 to 255 (the kernel).
	// 0x5052 to 0x505f are reserved as above. The express path has a table of its own so
	// that either can be taken away without the other.
	PublishedTable = 0x5050
	ExpressTable   = 0x5051

	// PublishedPriority is before the rules that send everything without a certain
	// mark into a tunnel (Calico's WireGuard: 99, NetBird: 100 to 110, Tailscale: 5210
	// to 5270) and behind what looks at its own marks only (Cilium: 9 and 10). A rule
	// that is added without a number comes before the first numbered one, whatever
	// that is (fib_default_rule_pref), and nobody can be earlier: wg-quick's are such.
	// While it sends everything into its tunnel, it sends the answers to remote
	// clients there too, as on a host. 52 to 59 are reserved as above.
	PublishedPriority = 50
	ExpressPriority   = 51
)

// Ours reports whether a socket or packet with this mark is ours.
func Ours(mark uint32) bool {
	mark &= PublishedMask
	return mark >= PublishedMark && mark <= LastMark
}
