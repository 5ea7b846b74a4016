package rtnl

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// fibRuleHdrLen is the size of struct fib_rule_hdr (linux/fib_rules.h).
const fibRuleHdrLen = 12

// InstallPublishing sets up routing for published ports in the socket's network
// namespace. A server's answers to a client far away stay in the namespace:
//
//	50: from all fwmark 0x1050/0x10ff lookup 20560    TCP: the answer has the mark
//	50: from 127.0.0.0/8 lookup 20560                 UDP from a server on loopback
//	table 20560: local default dev lo
//
// and the same for IPv6, with ::1. The rules for loopback addresses change nothing
// between local addresses, which an earlier rule (0: lookup local) routes; without
// them the kernel refuses to send from there to anywhere else (EINVAL). The
// loopback interface is set up.
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
	if err := exchange(route, "add the local "+name+" route of published ports", localRoute(family, lo), nil); err != nil {
		return err
	}
	for _, r := range []struct {
		op string
		m  *message
	}{
		{"add the " + name + " rule for marked packets", markRule(family)},
		{"add the rule for packets from " + loopback.String(), sourceRule(family, loopback)},
	} {
		if err := exchange(route, r.op, r.m, nil); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// localRoute makes every address of the family local, in our table.
func localRoute(family uint8, lo int) *message {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = family
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_UNSPEC, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
	m.attrUint32(unix.RTA_TABLE, PublishedTable)
	m.attrUint32(unix.RTA_OIF, uint32(lo))
	return m
}

// rule starts a rule that leads to our table; sourceBits is the length of the
// prefix in FRA_SRC. EEXIST if there is the same one already.
func rule(family, sourceBits uint8) *message {
	b := make([]byte, fibRuleHdrLen)
	b[0], b[2] = family, sourceBits
	b[4], b[7] = unix.RT_TABLE_UNSPEC, unix.FR_ACT_TO_TBL
	m := newMessage(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
	m.attrUint32(unix.FRA_TABLE, PublishedTable)
	m.attrUint32(unix.FRA_PRIORITY, PublishedPriority)
	// A systemd-networkd in the container deletes rules that it does not know,
	// except the kernel's (networkd.conf(5), ManageForeignRoutingPolicyRules=).
	m.attr(unix.FRA_PROTOCOL, []byte{unix.RTPROT_KERNEL})
	return m
}

func markRule(family uint8) *message {
	m := rule(family, 0)
	m.attrUint32(unix.FRA_FWMARK, PublishedMark)
	m.attrUint32(unix.FRA_FWMASK, PublishedMask)
	return m
}

func sourceRule(family uint8, p netip.Prefix) *message {
	m := rule(family, uint8(p.Bits()))
	m.attr(unix.FRA_SRC, p.Addr().AsSlice())
	return m
}
