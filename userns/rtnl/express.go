package rtnl

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// InstallExpress sets up routing for the express path of the address families in the
// socket's network namespace:
//
//	51: from all fwmark 0x1051/0x10ff lookup 20561
//	table 20561: local default dev lo
//
// The loopback interface is set up. It can be done again at any time, and puts back
// what somebody has removed; all families are one exchange. A refusal is an *Error,
// as in InstallPublishing.
func InstallExpress(route *os.File, families ...uint8) error {
	list := []request{{op: "set lo up", m: upMessage("lo")}}
	for _, f := range families {
		name := familyName(f)
		// The route comes before the rule, so that no packet meets an empty table.
		list = append(list,
			request{op: "add the local " + name + " route of the express path", m: localRoute(f, loopbackIndex, ExpressTable)},
			request{op: "add the " + name + " rule of the express path", m: expressRule(unix.RTM_NEWRULE, f),
				ignore: []unix.Errno{unix.EEXIST}})
	}
	return batch(route, list)
}

// RemoveExpress takes away what InstallExpress adds, but leaves lo up. What is gone
// already is no error.
func RemoveExpress(route *os.File, families ...uint8) error {
	gone := append([]unix.Errno{unix.ESRCH, unix.ENOENT, unix.ENODEV}, noIPv6...)
	var list []request
	for _, f := range families {
		name := familyName(f)
		list = append(list,
			request{op: "delete the " + name + " rule of the express path", m: expressRule(unix.RTM_DELRULE, f), ignore: gone},
			request{op: "delete the local " + name + " route of the express path",
				m: localRouteAs(unix.RTM_DELROUTE, 0, f, loopbackIndex, ExpressTable), ignore: gone})
	}
	return batch(route, list)
}

func expressRule(kind uint16, family uint8) *message {
	return rule{kind, family, ExpressTable, ExpressPriority}.marked(ExpressMark)
}

func familyName(family uint8) string {
	if family == unix.AF_INET6 {
		return "IPv6"
	}
	return "IPv4"
}

// Of an interface's settings, these are passed by netlink too (linux/if_link.h, linux/ip.h).
const (
	iflaInetConf    = 1  // IFLA_INET_CONF: the values of net.ipv4.conf.NAME
	confAcceptLocal = 23 // IPV4_DEVCONF_ACCEPT_LOCAL
)

// AcceptLocal reads net.ipv4.conf.NAME.accept_local without /proc/sys, which is
// read-only in most containers. ENODEV when there is no such interface, EAFNOSUPPORT
// when it has no IPv4.
func AcceptLocal(route *os.File, name string) (bool, error) {
	op := "read accept_local of " + name
	m := newMessage(unix.RTM_GETLINK, 0, linkHeader(0, 0, 0))
	m.attrString(unix.IFLA_IFNAME, name)
	var on, found bool
	err := exchange(route, op, m, func(r reply) {
		if r.kind == unix.RTM_NEWLINK && len(r.body) >= unix.SizeofIfInfomsg {
			on, found = parseAcceptLocal(r.body[unix.SizeofIfInfomsg:])
		}
	})
	if err == nil && !found {
		err = &Error{Op: op, Errno: unix.EAFNOSUPPORT} // its MTU is below 68
	}
	return on, err
}

// parseAcceptLocal looks into the attributes of an RTM_NEWLINK: the settings are an
// array of 32-bit numbers, the first of which has the number 1.
func parseAcceptLocal(b []byte) (on, found bool) {
	conf := within(b, unix.IFLA_AF_SPEC, unix.AF_INET, iflaInetConf)
	if len(conf) < 4*confAcceptLocal {
		return false, false
	}
	return host.Uint32(conf[4*(confAcceptLocal-1):]) != 0, true
}

// within follows nested attributes inwards and gives the innermost value.
func within(b []byte, kinds ...uint16) []byte {
	for _, want := range kinds {
		var value []byte
		for kind, v := range attributes(b) {
			if kind == want {
				value = v
			}
		}
		b = value
	}
	return b
}

// SetAcceptLocal writes net.ipv4.conf.NAME.accept_local: whether IPv4 packets that
// come in with a source address of our own are taken.
func SetAcceptLocal(route *os.File, name string, on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	op := fmt.Sprintf("set accept_local of %s to %d", name, value)
	return change(route, op, name, 0, func(m *message) {
		m.nest(unix.IFLA_AF_SPEC, func() {
			m.nest(unix.AF_INET, func() {
				m.nest(iflaInetConf, func() { m.attrUint32(confAcceptLocal, value) })
			})
		})
	})
}
