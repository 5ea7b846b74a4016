package slirpcli

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/postern-net/postern/stack/netplan"
)

// Help is the usage. Callers look for options in it: for "--netns-type" as a word
// (dockerd-rootless.sh), for others as substrings (RootlessKit, Podman). The left
// column is therefore the original's, and every option begins its line.
const Help = `Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
Network for an existing namespace, without root. This is postern, in slirp4netns' place.

-c, --configure          give the interface its addresses and routes, bring it up
-e, --exit-fd=FD         end when the other side of this descriptor is closed
-r, --ready-fd=FD        write "1" to this descriptor when the network works
-m, --mtu=MTU            largest packet in bytes (default=1500, max=65521)
-6, --enable-ipv6        IPv6 too, in fd00::/64
-a, --api-socket=PATH    control socket, for published ports
--cidr=CIDR              IPv4 network (default=10.0.2.0/24)
--disable-host-loopback  keep 127.0.0.1 of the host out of reach
--netns-type=TYPE 	 what the first operand is ([path|pid|tapfd], default=pid)
--userns-path=PATH	 user namespace to enter before the network namespace
--enable-sandbox         accepted: the engine is always confined
--enable-seccomp         accepted: the engine always has a system call filter
--outbound-addr=IPv4     source address of outgoing IPv4 sockets, or an interface
--outbound-addr6=IPv6    source address of outgoing IPv6 sockets, or an interface
--disable-dns            no name server at 10.0.2.3 (or where --cidr puts it)
--macaddress=MAC         hardware address of the interface (with -c) or of the virtual machine (with bess)
--target-type=TYPE       what is served ([netns|bess], default=netns); bess: the operand is a socket for a virtual machine
-h, --help               show this help and exit
-v, --version            show the version and exit
`

// likeVersion is the release of slirp4netns whose command line and control socket
// this is; callers compare it.
const likeVersion = "1.3.1"

// Version is what --version prints. The first line and the keys of those that follow
// are the original's; the daemon of Docker reads a line with the word "version" in
// it as the version and one that begins with "commit:" as the commit, so no other
// line may have that word. release and commit are postern's, "" if unknown.
func Version(release, commit string) string {
	if commit == "" {
		commit = "unknown"
	}
	return fmt.Sprintf(`slirp4netns version %s
commit: %s
libslirp: none
SLIRP_CONFIG_VERSION_MAX: 4
libseccomp: none
postern: %s (in slirp4netns' place; the commit is postern's, the network stack gVisor's)
`, likeVersion, commit, release)
}

// Banner is what is printed on standard output at the start. plan is that of CIDR.
func (o *Options) Banner(plan netplan.Family, mtu int) string {
	var b strings.Builder
	b.WriteString("Starting slirp\n")
	line := func(key string, value any) { fmt.Fprintf(&b, "* %-16s %v\n", key+":", value) }
	first, last := plan.Pool()
	line("MTU", mtu)
	line("Network", plan.Prefix.Addr())
	line("Netmask", netmask(plan.Prefix))
	line("Gateway", plan.Gateway)
	line("DNS", plan.Resolver)
	line("DHCP begin", first)
	line("DHCP end", last)
	line("Recommended IP", plan.Container)
	if o.APISocket != "" {
		line("API Socket", o.APISocket)
	}
	if !o.DisableHostLoopback {
		fmt.Fprintf(&b, "WARNING: 127.0.0.1:* on the host is accessible as %s (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)\n", plan.Gateway)
	}
	return b.String()
}

// netmask writes an IPv4 network's mask as dotted numbers.
func netmask(p netip.Prefix) string { return net.IP(net.CIDRMask(p.Bits(), 32)).String() }
