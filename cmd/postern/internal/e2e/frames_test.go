package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol numbers and TCP flags of the probes.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	flagSYN, flagRST, flagACK = 0x02, 0x04, 0x10
)

// segment is what a test puts into a TCP, UDP or ICMP packet.
type segment struct {
	src, dst netip.AddrPort // ICMP echo: the source port is the identifier
	flags    byte
	seq, ack uint32
	urgent   uint16
	payload  []byte
	srcMAC   net.HardwareAddr
	dstMAC   net.HardwareAddr
	kind     byte // protoTCP, protoUDP or protoICMP (for both families)
}

// frame builds an Ethernet frame with right checksums, padded to Ethernet's least.
func (s segment) frame() []byte {
	var l4 []byte
	proto := s.kind
	six := s.src.Addr().Is6()
	switch proto {
	case protoTCP:
		l4 = make([]byte, 20, 20+len(s.payload))
		binary.BigEndian.PutUint16(l4, s.src.Port())
		binary.BigEndian.PutUint16(l4[2:], s.dst.Port())
		binary.BigEndian.PutUint32(l4[4:], s.seq)
		binary.BigEndian.PutUint32(l4[8:], s.ack)
		l4[12], l4[13] = 5<<4, s.flags
		binary.BigEndian.PutUint16(l4[14:], 0xffff)
		binary.BigEndian.PutUint16(l4[18:], s.urgent)
	case protoUDP:
		l4 = make([]byte, 8, 8+len(s.payload))
		binary.BigEndian.PutUint16(l4, s.src.Port())
		binary.BigEndian.PutUint16(l4[2:], s.dst.Port())
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(s.payload)))
	case protoICMP:
		l4 = make([]byte, 8, 8+len(s.payload))
		l4[0] = 8
		if six {
			l4[0], proto = 128, protoICMPv6
		}
		binary.BigEndian.PutUint16(l4[4:], s.src.Port())
	}
	l4 = append(l4, s.payload...)
	s.checksum(l4, proto)
	b := append(append([]byte(nil), s.dstMAC...), s.srcMAC...)
	if six {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, byte(len(l4)>>8), byte(len(l4)), proto, 64)
		b = append(append(b, s.src.Addr().AsSlice()...), s.dst.Addr().AsSlice()...)
	} else {
		h := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, proto, 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
		h = append(append(h, s.src.Addr().AsSlice()...), s.dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], ^fold(add(0, h)))
		b = append(append(b, 0x08, 0x00), h...)
	}
	b = append(b, l4...)
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

// checksum fills in the checksum of a transport header.
func (s segment) checksum(l4 []byte, proto byte) {
	at, total := 2, uint32(0)
	if proto != protoICMP { // ICMPv4 alone has no pseudo header
		pseudo := append(s.src.Addr().AsSlice(), s.dst.Addr().AsSlice()...)
		total = add(0, append(pseudo, 0, 0, byte(len(l4)>>8), byte(len(l4)), 0, 0, 0, proto))
	}
	switch proto {
	case protoTCP:
		at = 16
	case protoUDP:
		at = 6
	}
	binary.BigEndian.PutUint16(l4[at:], ^fold(add(total, l4)))
}

// add sums 16-bit words (RFC 1071).
func add(total uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		total += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		total += uint32(b[len(b)-1]) << 8
	}
	return total
}

func fold(total uint32) uint16 {
	for total>>16 != 0 {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

// received is a frame taken apart.
type received struct {
	dstMAC   net.HardwareAddr
	proto    byte
	src, dst netip.Addr
	l4       []byte
}

// dissect takes an IP frame apart; false for anything else.
func dissect(b []byte) (r received, ok bool) {
	if len(b) < 14 {
		return r, false
	}
	r.dstMAC = net.HardwareAddr(b[:6])
	kind, p := binary.BigEndian.Uint16(b[12:]), b[14:]
	if kind != unix.ETH_P_IP && kind != unix.ETH_P_IPV6 {
		return r, false
	}
	r.proto, r.src, r.dst, r.l4, ok = dissectIP(p)
	return r, ok
}

func dissectIP(p []byte) (proto byte, src, dst netip.Addr, l4 []byte, ok bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		head, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		total = min(total, len(p))
		if head > total {
			return 0, src, dst, nil, false
		}
		return p[9], netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), p[head:total], true
	case len(p) >= 40 && p[0]>>4 == 6:
		total := min(40+int(binary.BigEndian.Uint16(p[4:])), len(p))
		return p[6], netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), p[40:total], true
	}
	return 0, src, dst, nil, false
}

// wire is a packet socket on the container's interface.
type wire struct {
	fd      int
	mac     net.HardwareAddr
	gateway net.HardwareAddr
}

// openWire opens the first interface that is not the loopback, and asks who the
// gateway is.
func openWire() (*wire, error) {
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagLoopback != 0 {
			continue
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // htons
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return nil, fmt.Errorf("packet socket: %w", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
			return nil, fmt.Errorf("bind packet socket: %w", err)
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		w := &wire{fd: fd, mac: ifi.HardwareAddr}
		return w, w.findGateway()
	}
	return nil, fmt.Errorf("no interface but the loopback")
}

// arp is an Ethernet frame with an ARP packet (RFC 826).
func arp(op byte, srcMAC, dstMAC net.HardwareAddr, sender, target netip.Addr) []byte {
	b := append(append([]byte(nil), dstMAC...), srcMAC...)
	b = append(b, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, op)
	b = append(append(b, srcMAC...), sender.AsSlice()...)
	b = append(append(b, dstMAC...), target.AsSlice()...)
	return append(b, make([]byte, 18)...)
}

var broadcastMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255}

// findGateway asks for the gateway's address, again if nothing comes. Its answer also
// says that all frames that were sent before have been read.
func (w *wire) findGateway() error {
	gateway := netip.MustParseAddr("10.0.2.2")
	var asked time.Time
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if time.Since(asked) > time.Second {
			if err := w.send(arp(1, w.mac, broadcastMAC, netip.MustParseAddr("10.0.2.100"), gateway)); err != nil {
				return err
			}
			asked = time.Now()
		}
		b, err := w.recv(time.Second)
		if err != nil {
			return err
		}
		if len(b) >= 42 && b[12] == 8 && b[13] == 6 && b[21] == 2 && netip.AddrFrom4([4]byte(b[28:32])) == gateway {
			w.gateway = append(net.HardwareAddr(nil), b[22:28]...)
			return nil
		}
	}
	return fmt.Errorf("the gateway does not answer ARP")
}

func (w *wire) send(b []byte) error {
	for {
		_, err := unix.Write(w.fd, b)
		if err == unix.ENOBUFS || err == unix.EAGAIN {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
		return nil
	}
}

// recv returns the next incoming frame, nil when the time is up.
func (w *wire) recv(limit time.Duration) ([]byte, error) {
	b := make([]byte, 70<<10)
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil, nil
		}
		tv := unix.NsecToTimeval(int64(left))
		if tv.Sec == 0 && tv.Usec == 0 {
			return nil, nil // zero would be for ever
		}
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return nil, err
		}
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err != nil:
			return nil, fmt.Errorf("receive frame: %w", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		return b[:n], nil
	}
}
