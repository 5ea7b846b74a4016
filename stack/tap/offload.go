package tap

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is what a device is.
type Kind uint8

// The kinds.
const (
	TAP Kind = iota
	Packet
	// BareTAP is a TAP without IFF_VNET_HDR, which has no offloads.
	BareTAP
	// Seqpacket is a connected unix socket of that type, which has no offloads either.
	Seqpacket
)

// String returns "tap", "packet", "bare tap" or "seqpacket".
func (k Kind) String() string {
	switch k {
	case Packet:
		return "packet"
	case BareTAP:
		return "bare tap"
	case Seqpacket:
		return "seqpacket"
	}
	return "tap"
}

// Offloads says what the kernel does for us on a device.
type Offloads struct {
	// Csum: frames may carry partial checksums, both ways.
	Csum bool
	// TSO: TCP super-segments over IPv4 and IPv6, both ways.
	TSO bool
	// USO: UDP super-segments over IPv4 and IPv6, both ways (Linux 6.2).
	USO bool
}

// String lists the offloads, "csum,tso,uso" or "none".
func (o Offloads) String() string {
	var s []string
	for _, f := range []struct {
		on   bool
		name string
	}{{o.Csum, "csum"}, {o.TSO, "tso"}, {o.USO, "uso"}} {
		if f.on {
			s = append(s, f.name)
		}
	}
	if s == nil {
		return "none"
	}
	return strings.Join(s, ",")
}

// probeTAP sets the header length and as many offloads as the kernel takes.
// TUNSETOFFLOAD refuses the whole set with EINVAL when it does not know one of
// its bits, so the sets are tried from the fullest down.
func probeTAP(fd int) (Offloads, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
		return Offloads{}, fmt.Errorf("set the header size of the TAP to %d: %w", HeaderLen, err)
	}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	for _, try := range []struct {
		bits int
		o    Offloads
	}{
		{tso | unix.TUN_F_USO4 | unix.TUN_F_USO6, Offloads{Csum: true, TSO: true, USO: true}},
		{tso, Offloads{Csum: true, TSO: true}},
		{unix.TUN_F_CSUM, Offloads{Csum: true}},
		{0, Offloads{}},
	} {
		err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, try.bits)
		if err == nil {
			return try.o, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return Offloads{}, fmt.Errorf("set offloads %s on the TAP: %w", try.o, err)
		}
	}
	return Offloads{}, errors.New("set offloads on the TAP: the kernel takes none, not even an empty set")
}

// probeBare turns off what somebody may have turned on who had the device before:
// without a header a frame cannot say that it is a super-segment, or that its checksum
// is missing.
func probeBare(fd int) (Offloads, error) {
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return Offloads{}, fmt.Errorf("turn the offloads of the TAP off: %w", err)
	}
	return Offloads{}, nil
}

// probePacket turns the header on for a packet socket. UDP super-segments have
// no switch there: USO is assumed, and taken back by DisableUSO when the first
// write is refused.
func probePacket(fd int) (Offloads, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return Offloads{}, fmt.Errorf("turn PACKET_VNET_HDR on: %w", err)
	}
	// What we send must not come back to us. Both are optimizations of old
	// standing (Linux 4.20 and 3.14); our frames are not addressed to us anyway.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	for _, opt := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, packetBuffer)
	}
	return Offloads{Csum: true, TSO: true, USO: true}, nil
}

// packetBuffer is asked for in both directions of a packet socket; the kernel
// halves it to rmem_max/wmem_max. 8 MiB hold 128 super-segments: the socket is
// the queue of the virtual link, and what does not fit is lost.
const packetBuffer = 8 << 20
