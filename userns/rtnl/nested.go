package rtnl

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// NestedPriority is just before PublishedPriority.
const NestedPriority = 49

// InstallNested lets UDP from a loopback address go to nested containers, as TCP does,
// where InstallPublishing's rule would keep it on lo:
//
//	49: from 127.0.0.0/8 ipproto udp lookup main suppress_prefixlength 0
//
// A local client that destination NAT sends on to a bridge sends such datagrams, and the
// kernel asks the same question the other way round when the answer comes
// (fib_validate_source). Only the main table's default route is passed over: a client far
// away is answered as before. It is for IPv4, since the kernel has no such clients with
// IPv6. It can be done again at any time; a refusal is an *Error.
func InstallNested(route *os.File) error {
	return batch(route, []request{{op: "add the rule for UDP to nested containers", m: nestedRule(unix.RTM_NEWRULE), ignore: []unix.Errno{unix.EEXIST}}})
}

// RemoveNested takes away what InstallNested adds; it may be gone already.
func RemoveNested(route *os.File) error {
	gone := []unix.Errno{unix.ESRCH, unix.ENOENT}
	return batch(route, []request{{op: "delete the rule for UDP to nested containers", m: nestedRule(unix.RTM_DELRULE), ignore: gone}})
}

func nestedRule(kind uint16) *message {
	r := rule{kind, unix.AF_INET, unix.RT_TABLE_MAIN, NestedPriority}
	m := r.from(netip.MustParsePrefix("127.0.0.0/8"), unix.IPPROTO_UDP)
	m.attrUint32(fraSuppressPrefixLen, 0)
	return m
}

// fraSuppressPrefixLen is FRA_SUPPRESS_PREFIXLEN (linux/fib_rules.h): routes with prefixes
// of that length or shorter do not count.
const fraSuppressPrefixLen = 14
