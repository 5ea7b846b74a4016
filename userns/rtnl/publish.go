package rtnl

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// InstallPublishing sets up routing for published ports in the socket's network
// namespace. A server's answers to a client far away stay in the namespace:
//
//	50: from all fwmark 0x1050/0x10ff lookup 20560    TCP: the answer has the mark
//	50: from 127.0.0.0/8 ipproto udp lookup 20560     UDP from a server on loopback
//	50: from 127.0.0.0/8 ipproto icmp lookup 20560    or that there is none
//	table 20560: local default dev lo
//
// and the same for IPv6, with ::1. The rules for loopback addresses change nothing
// between local addresses, which an earlier rule (0: lookup local) routes; without
// them the kernel refuses to send from there to anywhere else (EINVAL). They are not
// for TCP: a client in there that connects to 127.0.0.1 and is sent on to a nested
// container by destination NAT goes by the bridge. The loopback interface is set up.
//
// It can be done again at any time, and puts back what somebody has removed. Rules
// and tables of others are left alone. A kernel or namespace without IPv6 is no
// error; one without policy routing (CONFIG_IP_MULTIPLE_TABLES) is EAFNOSUPPORT or
// EOPNOTSUPP. EPERM when the socket has no rights there.
func InstallPublishing(route *os.File) error {
	if err := Up(route, "lo"); err != nil {
		return err
	}
	lo, err := Find(route, "lo")
	if err != nil {
		return err
	}
	if err := installFamily(route, unix.AF_INET, "IPv4", lo.Index, netip.MustParsePrefix("127.0.0.0/8")); err != nil {
		return err
	}
	err = installFamily(route, unix.AF_INET6, "IPv6", lo.Index, netip.MustParsePrefix("::1/128"))
	for _, errno := range noIPv6 {
		if errors.Is(err, errno) {
			return nil
		}
	}
	return err
}

// noIPv6 is what the kernel says where there is no IPv6: not built or switched off
// at boot (the first two), or disable_ipv6 on the loopback interface.
var noIPv6 = []unix.Errno{unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.EACCES}

// installFamily adds the route before the rules, so that no packet meets an empty
// table and goes on to the next rule.
func installFamily(route *os.File, family uint8, name string, lo int, loopback netip.Prefix) error {
	if err := exchange(route, "add the local "+name+" route of published ports", localRoute(family, lo, PublishedTable), nil); err != nil {
		return err
	}
	icmp := byte(unix.IPPROTO_ICMP)
	if family == unix.AF_INET6 {
		icmp = unix.IPPROTO_ICMPV6
	}
	for _, r := range []struct {
		op string
		m  *message
	}{
		{"add the " + name + " rule for marked packets", published(family).marked(PublishedMark)},
		{"add the rule for UDP from " + loopback.String(), published(family).from(loopback, unix.IPPROTO_UDP)},
		{"add the rule for ICMP from " + loopback.String(), published(family).from(loopback, icmp)},
	} {
		if err := exchange(route, r.op, r.m, nil); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// published is what the rules of published ports have in common.
func published(family uint8) rule {
	return rule{unix.RTM_NEWRULE, family, PublishedTable, PublishedPriority}
}
