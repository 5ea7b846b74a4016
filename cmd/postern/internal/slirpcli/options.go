package slirpcli

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/postern-net/postern/stack/netplan"
)

// Defaults and limits of the original (slirp4netns(1)).
const (
	defaultMTU = 1500
	maxMTU     = 65521
	// minPrefix and maxPrefix bound the length of --cidr: N+100 must fit.
	minPrefix, maxPrefix = 1, 25
	// maxSocket is the longest path of a unix socket: sun_path has 108 bytes with
	// the closing zero (unix(7)).
	maxSocket = 107
)

// options are all that there are, with the old names of some. The order is the one
// in which the candidates of an ambiguous abbreviation are listed.
func options() []option {
	return []option{
		{"configure", 'c', false, func(o *Options, _ string) error { o.Configure = true; return nil }},
		{"exit-fd", 'e', true, func(o *Options, arg string) error { return descriptor("exit-fd", arg, &o.ExitFD) }},
		{"ready-fd", 'r', true, func(o *Options, arg string) error { return descriptor("ready-fd", arg, &o.ReadyFD) }},
		{"mtu", 'm', true, (*Options).setMTU},
		{"cidr", 0, true, (*Options).setCIDR},
		{"disable-host-loopback", 0, false, func(o *Options, _ string) error { o.DisableHostLoopback = true; return nil }},
		{"no-host-loopback", 0, false, func(o *Options, _ string) error { o.DisableHostLoopback = true; return nil }},
		{"netns-type", 0, true, (*Options).setNetNSType},
		{"userns-path", 0, true, func(o *Options, arg string) error { o.UserNSPath = arg; return nil }},
		{"api-socket", 'a', true, (*Options).setAPISocket},
		{"enable-ipv6", '6', false, func(o *Options, _ string) error { o.IPv6 = true; return nil }},
		{"enable-sandbox", 0, false, func(o *Options, _ string) error { o.Sandbox = true; return nil }},
		{"create-sandbox", 0, false, func(o *Options, _ string) error { o.Sandbox = true; return nil }},
		{"enable-seccomp", 0, false, func(o *Options, _ string) error { o.Seccomp = true; return nil }},
		{"outbound-addr", 0, true, func(o *Options, arg string) error { o.Outbound4 = arg; return nil }},
		{"outbound-addr6", 0, true, func(o *Options, arg string) error { o.Outbound6 = arg; return nil }},
		{"disable-dns", 0, false, func(o *Options, _ string) error { o.DisableDNS = true; return nil }},
		{"macaddress", 0, true, (*Options).setMAC},
		{"target-type", 0, true, (*Options).setTargetType},
		{"help", 'h', false, func(o *Options, _ string) error { o.Action = ShowHelp; return nil }},
		{"version", 'v', false, func(o *Options, _ string) error { o.Action = ShowVersion; return nil }},
	}
}

func descriptor(name, arg string, fd *int) error {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 0 {
		return &UsageError{fmt.Errorf("--%s %q: want the number of an open descriptor, 0 or more", name, arg)}
	}
	*fd = n
	return nil
}

func (o *Options) setMTU(arg string) error {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 1 || n > maxMTU {
		return &UsageError{fmt.Errorf("--mtu %q: want 1 to %d bytes", arg, maxMTU)}
	}
	o.MTU = n
	return nil
}

func (o *Options) setCIDR(arg string) error {
	p, err := netip.ParsePrefix(arg)
	switch {
	case err != nil || !p.Addr().Is4():
		return fmt.Errorf("--cidr %q: want an IPv4 network like %s", arg, netplan.DefaultV4)
	case p.Bits() < minPrefix || p.Bits() > maxPrefix:
		return fmt.Errorf("--cidr %s: the prefix length must be %d to %d", arg, minPrefix, maxPrefix)
	case p != p.Masked():
		return fmt.Errorf("--cidr %s: that is an address in the network; want the network's own, %s", arg, p.Masked())
	}
	o.CIDR = p
	return nil
}

func (o *Options) setNetNSType(arg string) error {
	switch t := NetNSType(arg); t {
	case TypePID, TypePath, TypeTAPFD:
		o.NetNSType = t
		return nil
	}
	return &UsageError{fmt.Errorf("--netns-type %q: want path, pid or tapfd", arg)}
}

func (o *Options) setAPISocket(arg string) error {
	if arg == "" || len(arg) > maxSocket {
		return fmt.Errorf("--api-socket: a path of %d bytes cannot be a socket's, want 1 to %d", len(arg), maxSocket)
	}
	o.APISocket = arg
	return nil
}

func (o *Options) setMAC(arg string) error {
	mac, err := net.ParseMAC(arg)
	if err != nil || len(mac) != len(o.MAC) || mac[0]&1 != 0 {
		return fmt.Errorf("--macaddress %q: want the hardware address of one interface, like 02:00:00:12:34:56", arg)
	}
	if [6]byte(mac) == [6]byte{} {
		return fmt.Errorf("--macaddress %s: no interface can have that address", arg)
	}
	o.MAC = [6]byte(mac)
	return nil
}

func (o *Options) setTargetType(arg string) error {
	switch arg {
	case "netns", "bess":
		o.Bess = arg == "bess"
		return nil
	}
	return &UsageError{fmt.Errorf("--target-type %q: want netns or bess", arg)}
}
