package rtnl

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// fibRuleHdrLen is the size of struct fib_rule_hdr (linux/fib_rules.h).
const fibRuleHdrLen = 12

// loopbackIndex is the index of lo, the same in every network namespace
// (LOOPBACK_IFINDEX, include/net/flow.h).
const loopbackIndex = 1

// localRoute makes every address of the family local, in a table of ours.
func localRoute(family uint8, lo int, table uint32) *message {
	return localRouteAs(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, family, lo, table)
}

// localRouteAs is the same route for a request to add or to delete it.
func localRouteAs(kind, flags uint16, family uint8, lo int, table uint32) *message {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = family
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_UNSPEC, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
	m := newMessage(kind, flags, b)
	m.attrUint32(unix.RTA_TABLE, table)
	m.attrUint32(unix.RTA_OIF, uint32(lo))
	return m
}

// rule is a rule that leads to a table of ours, to be added (EEXIST if there is the
// same one already) or deleted.
type rule struct {
	kind            uint16 // RTM_NEWRULE or RTM_DELRULE
	family          uint8
	table, priority uint32
}

// message starts the request; sourceBits is the length of the prefix in FRA_SRC.
func (r rule) message(sourceBits uint8) *message {
	b := make([]byte, fibRuleHdrLen)
	b[0], b[2] = r.family, sourceBits
	b[4], b[7] = unix.RT_TABLE_UNSPEC, unix.FR_ACT_TO_TBL
	flags := uint16(0)
	if r.kind == unix.RTM_NEWRULE {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	m := newMessage(r.kind, flags, b)
	m.attrUint32(unix.FRA_TABLE, r.table)
	m.attrUint32(unix.FRA_PRIORITY, r.priority)
	// A systemd-networkd in the container deletes rules that it does not know,
	// except the kernel's (networkd.conf(5), ManageForeignRoutingPolicyRules=).
	m.attr(unix.FRA_PROTOCOL, []byte{unix.RTPROT_KERNEL})
	return m
}

// marked is the rule for packets with that mark, under PublishedMask.
func (r rule) marked(mark uint32) *message {
	m := r.message(0)
	m.attrUint32(unix.FRA_FWMARK, mark)
	m.attrUint32(unix.FRA_FWMASK, PublishedMask)
	return m
}

// from is the rule for packets of a protocol with a source in the prefix. Kernels before
// 4.17 do not know FRA_IP_PROTO and take it for every protocol.
func (r rule) from(p netip.Prefix, proto byte) *message {
	m := r.message(uint8(p.Bits()))
	m.attr(unix.FRA_SRC, p.Addr().AsSlice())
	m.attr(unix.FRA_IP_PROTO, []byte{proto})
	return m
}
