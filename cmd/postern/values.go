package main

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxPorts bounds the ports that --allow-host-loopback may list one by one: they
// travel to the engine in one message. Who wants more wants all.
const maxPorts = 4096

// parseLoopback reads --allow-host-loopback: "" is off, "all" is every port, else
// a list of ports and ranges.
func parseLoopback(text string) (on bool, ports []uint16, err error) {
	switch text {
	case "", "false", "no":
		return false, nil, nil
	case loopbackAll, "true", "yes":
		return true, nil, nil
	}
	for _, item := range strings.Split(text, ",") {
		first, last, err := parsePortRange(item)
		if err != nil {
			return false, nil, fmt.Errorf("--allow-host-loopback %q: want ports and ranges like 80,8000-8010", text)
		}
		if len(ports)+int(last-first)+1 > maxPorts {
			return false, nil, fmt.Errorf("--allow-host-loopback %q: more than %d ports; leave them out to allow all", text, maxPorts)
		}
		for p := int(first); p <= int(last); p++ {
			ports = append(ports, uint16(p))
		}
	}
	return true, ports, nil
}

func parsePortRange(item string) (first, last uint16, err error) {
	low, high, ranged := strings.Cut(strings.TrimSpace(item), "-")
	if first, err = parsePort(low); err != nil || !ranged {
		return first, first, err
	}
	if last, err = parsePort(high); err == nil && last < first {
		err = fmt.Errorf("range %q runs backwards", item)
	}
	return first, last, err
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil && n == 0 {
		err = fmt.Errorf("port 0")
	}
	return uint16(n), err
}

// checkIfName holds the kernel's rules for interface names (dev_valid_name):
// fewer than IFNAMSIZ bytes, no slash, colon or white space, not "." or "..".
func checkIfName(name string) error {
	bad := name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || name == "lo" ||
		strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '%' || r > '~' })
	if bad {
		return fmt.Errorf("--ifname %q: want 1 to %d letters, digits and signs without '/', ':', '%%' and space, not lo", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// parseOutbound reads --outbound-addr: addresses, or interfaces that lend theirs.
func parseOutbound(items []string) (v4, v6 netip.Addr, err error) {
	for _, item := range items {
		addrs, err := outboundAddrs(item)
		if err != nil {
			return netip.Addr{}, netip.Addr{}, err
		}
		for _, addr := range addrs {
			slot := &v6
			if addr.Is4() {
				slot = &v4
			}
			if slot.IsValid() && len(addrs) == 1 {
				return netip.Addr{}, netip.Addr{}, fmt.Errorf("--outbound-addr %s: more than one address of its family", item)
			}
			if !slot.IsValid() {
				*slot = addr
			}
		}
	}
	return v4, v6, nil
}

// outboundAddrs returns the address that item is, or those of the interface that
// it names.
func outboundAddrs(item string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(item); err == nil {
		if addr.IsUnspecified() || addr.IsMulticast() {
			return nil, fmt.Errorf("--outbound-addr %s: not an address of an interface", item)
		}
		return []netip.Addr{addr.Unmap()}, nil
	}
	ifi, err := net.InterfaceByName(item)
	if err != nil {
		return nil, fmt.Errorf("--outbound-addr %s: neither an address nor an interface of this machine", item)
	}
	all, err := ifi.Addrs()
	if err != nil {
		return nil, fmt.Errorf("--outbound-addr %s: %w", item, err)
	}
	var addrs []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() {
			addrs = append(addrs, p.Addr().Unmap())
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("--outbound-addr %s: the interface has no address", item)
	}
	return addrs, nil
}

// isOpen reports whether fd is an open descriptor that is not a standard one.
func isOpen(fd int) bool {
	if fd <= 2 {
		return false
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// sealDescriptors keeps what our caller left open out of every program that we
// start: the command gets its standard streams, nothing else.
func sealDescriptors() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// A kernel before 5.11, or a container that forbids the call.
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("mark inherited descriptors close-on-exec: %w", err)
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(name.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
