package hostsock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below bypass the wrappers of x/sys, which allocate an address for
// every message.

// name is room for a socket address of either family.
type name = unix.RawSockaddrInet6

// putName writes ap in the form of its family and returns the length in bytes.
// Ports are in network order; struct layouts are those of ip(7) and ipv6(7).
func putName(n *name, ap netip.AddrPort) uint32 {
	if ap.Addr().Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(n))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: ap.Addr().As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], ap.Port())
		return unix.SizeofSockaddrInet4
	}
	*n = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: ap.Addr().As16()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&n.Port))[:], ap.Port())
	return unix.SizeofSockaddrInet6
}

// getName reads an address of either family. The zone is left out; a Message has
// the interface apart.
func getName(n *name) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&n.Port))[:])
	switch n.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(n)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.Addr), port)
	}
	return netip.AddrPort{}
}

func sendmsg(fd int, hdr *unix.Msghdr) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(hdr)), unix.MSG_NOSIGNAL)
	return e
}

func recvmsg(fd int, hdr *unix.Msghdr, flags int) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(hdr)), uintptr(flags))
	return int(n), e
}

// recvmmsg receives without waiting and returns how many messages came.
func recvmmsg(fd int, hdrs []mmsghdr) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))),
		uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), e
}

// mmsghdr is struct mmsghdr of recvmmsg(2). Go aligns its size as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func sendmmsg(fd int, hdrs []mmsghdr) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))),
		uintptr(len(hdrs)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

// setIovec points v at b, which may be empty.
func setIovec(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// controls is room for the control messages of one send. A hop limit, a segment
// size and a source take 88 bytes. The array of words aligns it for struct cmsghdr.
type controls struct {
	buf [16]uint64
	n   int
}

func (c *controls) reset() { c.n = 0 }

// add appends a control message with size bytes of data and returns the data.
func (c *controls) add(level, typ int32, size int) unsafe.Pointer {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&c.buf)), len(c.buf)*8)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[c.n]))
	*h = unix.Cmsghdr{Level: level, Type: typ}
	h.SetLen(unix.CmsgLen(size))
	data := unsafe.Pointer(&b[c.n+unix.CmsgLen(0)])
	c.n += unix.CmsgSpace(size)
	return data
}

func (c *controls) addInt32(level, typ int32, v int32) { *(*int32)(c.add(level, typ, 4)) = v }

func (c *controls) addUint16(level, typ int32, v uint16) { *(*uint16)(c.add(level, typ, 2)) = v }

// addPktinfo4 asks for a source address and an interface (ip(7), IP_PKTINFO).
func (c *controls) addPktinfo4(from netip.Addr, index int) {
	info := (*unix.Inet4Pktinfo)(c.add(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo))
	*info = unix.Inet4Pktinfo{Ifindex: int32(index)}
	if from = from.Unmap(); from.Is4() {
		info.Spec_dst = from.As4()
	}
}

// addPktinfo6 is addPktinfo4's counterpart (ipv6(7), IPV6_PKTINFO). A dual-stack
// socket takes an IPv4 address in its mapped form.
func (c *controls) addPktinfo6(from netip.Addr, index int) {
	info := (*unix.Inet6Pktinfo)(c.add(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo))
	*info = unix.Inet6Pktinfo{Ifindex: uint32(index)}
	if from.IsValid() {
		info.Addr = from.As16()
	}
}

// attach makes the messages part of hdr.
func (c *controls) attach(hdr *unix.Msghdr) {
	hdr.Control = nil
	if c.n > 0 {
		hdr.Control = (*byte)(unsafe.Pointer(&c.buf))
	}
	hdr.SetControllen(c.n)
}
