package inspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

var host = binary.NativeEndian

// Attributes of RTM_GETNSID (linux/net_namespace.h).
const (
	netnsaNSID = 1
	netnsaFD   = 3
)

// dumpLinks asks for the interfaces of the socket's network with their addresses.
func dumpLinks(route *os.File) (list []Interface, omitted int, err error) {
	err = rtnl.Dump(route, "list interfaces", unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(kind uint16, body []byte) {
		l, perr := parseLink(body)
		switch {
		case kind != unix.RTM_NEWLINK || perr != nil:
		case len(list) == maxLinks:
			omitted++
		default:
			list = append(list, l)
		}
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(list, func(a, b Interface) int { return a.Index - b.Index })
	n := 0
	err = rtnl.Dump(route, "list addresses", unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(kind uint16, body []byte) {
		index, p, perr := parseAddress(body)
		if kind != unix.RTM_NEWADDR || perr != nil {
			return
		}
		if n++; n > maxAddresses {
			omitted++
			return
		}
		if l := find(list, func(l *Interface) bool { return l.Index == index }); l != nil {
			l.Addresses = append(l.Addresses, p)
		}
	})
	return list, omitted, err
}

// parseLink reads the body of an RTM_NEWLINK message (rtnetlink(7)).
func parseLink(b []byte) (Interface, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Interface{}, errMalformed
	}
	l := Interface{Index: int(int32(host.Uint32(b[4:]))), Up: host.Uint32(b[8:])&unix.IFF_UP != 0, nsid: -1}
	rtnl.Attributes(b[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch {
		case kind == unix.IFLA_IFNAME:
			l.Name = Clean(cString(v), unix.IFNAMSIZ)
		case kind == unix.IFLA_ADDRESS && len(v) == 6:
			l.MAC = net.HardwareAddr(v).String()
		case kind == unix.IFLA_LINKINFO:
			rtnl.Attributes(v, func(kind uint16, v []byte) {
				if kind == unix.IFLA_INFO_KIND {
					l.Kind = Clean(cString(v), 32)
				}
			})
		case len(v) < 4:
		case kind == unix.IFLA_MTU:
			l.MTU = int(host.Uint32(v))
		case kind == unix.IFLA_MASTER:
			l.master = int(host.Uint32(v))
		case kind == unix.IFLA_LINK:
			l.link = int(host.Uint32(v))
		case kind == unix.IFLA_LINK_NETNSID:
			l.nsid = int(int32(host.Uint32(v)))
		}
	})
	return l, nil
}

// parseAddress reads the body of an RTM_NEWADDR message. On an interface with a peer
// address IFA_ADDRESS is the peer's and IFA_LOCAL ours.
func parseAddress(b []byte) (index int, p netip.Prefix, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return 0, p, errMalformed
	}
	var local, address netip.Addr
	rtnl.Attributes(b[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		a, ok := netip.AddrFromSlice(v)
		switch {
		case ok && kind == unix.IFA_LOCAL:
			local = a
		case ok && kind == unix.IFA_ADDRESS:
			address = a
		}
	})
	if !local.IsValid() {
		local = address
	}
	if p = netip.PrefixFrom(local, int(b[1])); !p.IsValid() {
		return 0, p, errMalformed
	}
	return int(host.Uint32(b[4:])), p, nil
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// nsidOf asks which id the socket's network has for the network that is open as f;
// -1 for none.
func nsidOf(route, f *os.File) (int, error) {
	const fixed = unix.NLMSG_ALIGNTO // struct rtgenmsg, padded
	m := make([]byte, unix.NLMSG_HDRLEN+fixed, 64)
	m = host.AppendUint16(m, unix.SizeofRtAttr+4)
	m = host.AppendUint16(m, netnsaFD)
	m = host.AppendUint32(m, uint32(f.Fd()))
	host.PutUint32(m, uint32(len(m)))
	host.PutUint16(m[4:], unix.RTM_GETNSID)
	host.PutUint16(m[6:], unix.NLM_F_REQUEST)
	const seq = 1 << 31 // no number of a dump's
	host.PutUint32(m[8:], seq)
	answer, err := ask(route, m, seq)
	if err != nil {
		return -1, fmt.Errorf("ask for the id of a network: %w", err)
	}
	id := -1
	rtnl.Attributes(answer[min(fixed, len(answer)):], func(kind uint16, v []byte) {
		if kind == netnsaNSID && len(v) >= 4 {
			id = int(int32(host.Uint32(v)))
		}
	})
	return id, nil
}

// ask sends a request whose answer is one message and returns its body. The kernel
// has answered when the send returns.
func ask(route *os.File, request []byte, seq uint32) (body []byte, err error) {
	rc, err := route.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) {
		if err = unix.Sendto(int(fd), request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return
		}
		body, err = receive(int(fd), seq)
	})
	return body, errors.Join(err, cerr)
}

func receive(fd int, seq uint32) ([]byte, error) {
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return nil, err
		}
		b := buf[:n]
		if n < unix.NLMSG_HDRLEN || host.Uint32(b[8:]) != seq {
			continue
		}
		size := int64(host.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > int64(n) {
			return nil, errMalformed
		}
		b = b[unix.NLMSG_HDRLEN:size]
		if host.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			return b, nil
		}
		if len(b) < 4 {
			return nil, errMalformed
		}
		return nil, unix.Errno(-int32(host.Uint32(b)))
	}
}
