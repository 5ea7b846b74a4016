package supervisor

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/netplan"
)

// dnsPort is where resolv.conf(5) servers listen.
const dnsPort = 53

// upstreams are the servers that the engine asks, the user's before the host's.
func upstreams(cfg *Config, host dns.ResolvConf) []netip.AddrPort {
	servers := cfg.DNS
	if len(servers) == 0 {
		servers = host.Nameservers
	}
	out := make([]netip.AddrPort, 0, len(servers))
	for _, s := range servers {
		out = append(out, netip.AddrPortFrom(s, dnsPort))
	}
	return out
}

// resolvConf is the container's resolv.conf: our name server on each family, unless
// there is to be none, the search list, and the host's options.
func resolvConf(cfg *Config, host dns.ResolvConf) []byte {
	var servers []netip.Addr
	for _, f := range families(cfg.Plan) {
		if !cfg.NoDNS {
			servers = append(servers, f.Resolver)
		}
	}
	search := cfg.DNSSearch
	if len(search) == 0 {
		search = host.Search
	}
	return dns.WriteResolvConf(servers, search, host.Options)
}

// hostsFile is the container's hosts file: itself, and nothing of the host's. The
// gateway's names are the name server's business.
func hostsFile(plan netplan.Plan, hostname string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if hostname == "" || hostname == "localhost" {
		return b.Bytes()
	}
	for _, f := range families(plan) {
		fmt.Fprintf(&b, "%s\t%s\n", f.Container, hostname)
	}
	return b.Bytes()
}

// families are the families of a plan that are on, IPv4 first.
func families(p netplan.Plan) []netplan.Family {
	var on []netplan.Family
	for _, f := range []netplan.Family{p.V4, p.V6} {
		if f.On() {
			on = append(on, f)
		}
	}
	return on
}
