package nstest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// request sends one rtnetlink message in the calling thread's namespace and
// waits for the answer. b is what follows struct nlmsghdr.
func request(what string, typ, flags uint16, b []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("%s: %w", what, os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	msg := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(b))
	binary.NativeEndian.PutUint32(msg, uint32(unix.NLMSG_HDRLEN+len(b)))
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	if err := unix.Sendto(fd, append(msg, b...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: %w", what, os.NewSyscallError("sendto", err))
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.NLMSG_HDRLEN+4 {
		return fmt.Errorf("%s: short answer: %w", what, err)
	}
	if e := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); e != 0 {
		return fmt.Errorf("%s: %w", what, unix.Errno(-e))
	}
	return nil
}

// attr appends a netlink attribute.
func attr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func index(name string) (int, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return i.Index, nil
}

// LinkUp sets an interface up.
func LinkUp(name string) error {
	i, err := index(name)
	if err != nil {
		return err
	}
	m := unix.IfInfomsg{Index: int32(i), Flags: unix.IFF_UP, Change: unix.IFF_UP}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&m)), unix.SizeofIfInfomsg)
	return request("set "+name+" up", unix.RTM_NEWLINK, 0, b)
}

// AddAddr gives an interface an address.
func AddAddr(name string, p netip.Prefix) error {
	i, err := index(name)
	if err != nil {
		return err
	}
	m := unix.IfAddrmsg{Family: family(p.Addr()), Prefixlen: uint8(p.Bits()), Index: uint32(i), Flags: unix.IFA_F_NODAD}
	b := append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&m)), unix.SizeofIfAddrmsg)...)
	b = attr(b, unix.IFA_LOCAL, p.Addr().AsSlice())
	b = attr(b, unix.IFA_ADDRESS, p.Addr().AsSlice())
	return request(fmt.Sprintf("add %s to %s", p, name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
}

// AddRoute adds a route by a gateway. typ is unix.RTN_UNICAST, or RTN_UNREACHABLE
// and the like, which take no gateway.
func AddRoute(dst netip.Prefix, gateway netip.Addr, typ uint8) error {
	m := unix.RtMsg{Family: family(dst.Addr()), Dst_len: uint8(dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_UNIVERSE, Type: typ}
	b := append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&m)), unix.SizeofRtMsg)...)
	b = attr(b, unix.RTA_DST, dst.Addr().AsSlice())
	if gateway.IsValid() {
		b = attr(b, unix.RTA_GATEWAY, gateway.AsSlice())
	}
	return request(fmt.Sprintf("add route to %s", dst), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
}

// AddVeth makes a pair of interfaces, the peer in the namespace ns.
func AddVeth(name, peer string, ns *os.File) error {
	const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	var none unix.IfInfomsg
	head := unsafe.Slice((*byte)(unsafe.Pointer(&none)), unix.SizeofIfInfomsg)
	far := append([]byte(nil), head...)
	far = attr(far, unix.IFLA_IFNAME, append([]byte(peer), 0))
	far = attr(far, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(ns.Fd())))
	info := attr(nil, unix.IFLA_INFO_KIND, []byte("veth"))
	info = attr(info, unix.IFLA_INFO_DATA, attr(nil, vethInfoPeer, far))
	b := append([]byte(nil), head...)
	b = attr(b, unix.IFLA_IFNAME, append([]byte(name), 0))
	b = attr(b, unix.IFLA_LINKINFO, info)
	return request("add veth "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// LinkDelete deletes an interface.
func LinkDelete(name string) error {
	i, err := index(name)
	if err != nil {
		return err
	}
	m := unix.IfInfomsg{Index: int32(i)}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&m)), unix.SizeofIfInfomsg)
	return request("delete "+name, unix.RTM_DELLINK, 0, b)
}
