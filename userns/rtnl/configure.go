package rtnl

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Interface is how an interface shall be configured. Zero fields leave the
// interface as it is.
type Interface struct {
	// Name is the interface's name; required.
	Name string
	// MAC is its hardware address, set before it is up.
	MAC [6]byte
	// MTU is in bytes, without the Ethernet header. IPv6 addresses need 1280 or
	// more (RFC 8200, section 5).
	MTU int
	// Addrs are its addresses with their prefix lengths.
	Addrs []netip.Prefix
	// Gateways are default routes, at most one a family. One that lies in none of
	// the prefixes of Addrs is taken to be on the link all the same.
	Gateways []netip.Addr
	// TxQueueLen is how many packets wait in the queue towards the interface.
	TxQueueLen int
}

// Configure sets the loopback interface and then this one up, with MTU, addresses
// and default routes. What is there already is replaced, so that doing it twice
// does no harm; other addresses stay. The interface must exist (ENODEV).
func Configure(route *os.File, cfg Interface) (Link, error) {
	if err := Up(route, "lo"); err != nil {
		return Link{}, err
	}
	if cfg.MAC != [6]byte{} {
		if err := setMAC(route, cfg.Name, cfg.MAC); err != nil {
			return Link{}, err
		}
	}
	if cfg.MTU != 0 {
		if err := setMTU(route, cfg.Name, cfg.MTU); err != nil {
			return Link{}, err
		}
	}
	if cfg.TxQueueLen != 0 {
		op := fmt.Sprintf("set queue length %d on %s", cfg.TxQueueLen, cfg.Name)
		fill := func(m *message) { m.attrUint32(unix.IFLA_TXQLEN, uint32(cfg.TxQueueLen)) }
		if err := change(route, op, cfg.Name, 0, fill); err != nil {
			return Link{}, err
		}
	}
	if err := Up(route, cfg.Name); err != nil {
		return Link{}, err
	}
	l, err := Find(route, cfg.Name)
	if err != nil {
		return Link{}, err
	}
	for _, p := range cfg.Addrs {
		op := fmt.Sprintf("add address %s to %s", p, cfg.Name)
		if err := exchange(route, op, addressMessage(l.Index, p), nil); err != nil {
			return Link{}, err
		}
	}
	for _, p := range cfg.Addrs {
		if err := awaitLocal(route, p.Addr()); err != nil {
			return Link{}, err
		}
	}
	for _, gw := range cfg.Gateways {
		op := fmt.Sprintf("add default route via %s on %s", gw, cfg.Name)
		if err := exchange(route, op, routeMessage(l.Index, gw, onLink(gw, cfg.Addrs)), nil); err != nil {
			return Link{}, err
		}
	}
	return l, nil
}

// addressMessage adds or replaces an address. An IPv6 address is usable after a moment
// (awaitLocal), without duplicate address detection (RFC 4862, section 5.4): there is no one
// else on the link, and one second would be lost.
func addressMessage(index int, p netip.Prefix) *message {
	family, flags := uint8(unix.AF_INET), uint8(unix.IFA_F_PERMANENT)
	if p.Addr().Is6() {
		family, flags = unix.AF_INET6, flags|unix.IFA_F_NODAD
	}
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, addrHeader(family, uint8(p.Bits()), flags, index))
	m.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
	if b, ok := broadcast(p); ok {
		m.attr(unix.IFA_BROADCAST, b.AsSlice())
	}
	return m
}

// broadcast is an IPv4 prefix's directed broadcast address; a /31 and a /32 have
// none (RFC 3021).
func broadcast(p netip.Prefix) (netip.Addr, bool) {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}, false
	}
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a), true
}

// routeMessage adds or replaces the default route of the gateway's family.
func routeMessage(index int, gw netip.Addr, direct bool) *message {
	family, flags := uint8(unix.AF_INET), uint32(0)
	if gw.Is6() {
		family = unix.AF_INET6
	}
	if direct {
		flags = unix.RTNH_F_ONLINK
	}
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, routeHeader(family, flags))
	m.attr(unix.RTA_GATEWAY, gw.AsSlice())
	m.attrUint32(unix.RTA_OIF, uint32(index))
	return m
}

// onLink reports whether the kernel has to be told that gw is a neighbour, since
// no prefix says so.
func onLink(gw netip.Addr, addrs []netip.Prefix) bool {
	for _, p := range addrs {
		if p.Masked().Contains(gw) {
			return false
		}
	}
	return true
}
