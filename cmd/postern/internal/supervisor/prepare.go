package supervisor

import (
	"fmt"
	"os"

	"github.com/postern-net/postern/stack/netplan"
)

// minMTU6 is the smallest MTU that IPv6 works with (RFC 8200 section 5).
const minMTU6 = 1280

// prepare turns off what cannot work and says so, once.
func prepare(cfg *Config) error {
	if cfg.Plan.V6.On() {
		if why := noIPv6(cfg.MTU, "/proc/sys/net/ipv6"); why != "" {
			cfg.Plan.V6 = netplan.Family{}
			notify(cfg.Stderr, why+"; going on without IPv6 (--cidr6=none)")
		}
	}
	if !cfg.Plan.V4.On() && !cfg.Plan.V6.On() {
		return fmt.Errorf("plan the network: no address family is left (--cidr, --cidr6)")
	}
	return cfg.Plan.V4.CheckPool(cfg.DHCPFirst, cfg.DHCPLast)
}

// noIPv6 says why there can be no IPv6, "" if there can.
func noIPv6(mtu int, sysctl string) string {
	if mtu < minMTU6 {
		return fmt.Sprintf("MTU %d is below IPv6's minimum of %d", mtu, minMTU6)
	}
	if _, err := os.Stat(sysctl); os.IsNotExist(err) {
		return "this kernel has no IPv6"
	}
	return ""
}
