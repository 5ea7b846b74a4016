package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// floodBurst is how many steps of a flood may be under way. The container's own
// queue, which is 500 packets long (TUN_READQ_SIZE), is not to be what drops: neither
// theirs nor those of others.
const floodBurst = 128

// floodRole: KIND ADDRESS:PORT COUNT RATE — sends that many raw packets, so many a
// second, or as many as the engine reads:
//
//	syn    SYNs from ever new ports and addresses of the container's network
//	early  the same, each followed at once by a RST
//	udp    datagrams from ever new ports to ever new ports
func floodRole(args []string) error {
	dst, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	count, _ := strconv.Atoi(args[2])
	rate, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	w, err := openWire()
	if err != nil {
		return err
	}
	start := time.Now()
	for n := range count {
		for _, s := range floodSegments(args[0], dst, n) {
			s.srcMAC, s.dstMAC = w.mac, w.gateway
			if err := w.send(s.frame()); err != nil {
				return err
			}
		}
		if n%floodBurst == floodBurst-1 {
			if err := w.findGateway(); err != nil {
				return err
			}
		}
		time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / time.Duration(rate))))
	}
	fmt.Printf("%d in %v", count, time.Since(start).Round(time.Millisecond))
	return nil
}

// floodSegments is the nth step of a flood.
func floodSegments(kind string, dst netip.AddrPort, n int) []segment {
	const ports = 60000
	src := netip.AddrFrom4([4]byte{10, 0, 2, byte(120 + n/ports%100)})
	s := segment{kind: protoTCP, flags: flagSYN, seq: uint32(n) * 7919, src: netip.AddrPortFrom(src, uint16(2000+n%ports)), dst: dst}
	switch kind {
	case "early":
		reset := s
		reset.flags, reset.seq = flagRST, s.seq+1
		return []segment{s, reset}
	case "udp":
		s.kind, s.payload = protoUDP, []byte("flood")
		s.dst = netip.AddrPortFrom(dst.Addr(), uint16(1024+n*31%ports))
	}
	return []segment{s}
}

// cycleRole: ADDRESS:PORT COUNT — that many times SYN, SYN-ACK, RST. Prints the
// initial sequence numbers of the SYN-ACKs, one a line.
func cycleRole(args []string) error {
	dst, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	count, _ := strconv.Atoi(args[1])
	w, err := openWire()
	if err != nil {
		return err
	}
	for n := range count {
		s := floodSegments("syn", dst, n)[0]
		s.srcMAC, s.dstMAC = w.mac, w.gateway
		if err := w.send(s.frame()); err != nil {
			return err
		}
		seq, err := w.awaitSYNACK(s.src.Port())
		if err != nil {
			return fmt.Errorf("cycle %d: %w", n, err)
		}
		fmt.Println(seq)
		s.flags, s.seq = flagRST, s.seq+1
		if err := w.send(s.frame()); err != nil {
			return err
		}
	}
	return nil
}

// awaitSYNACK returns the sequence number of the SYN-ACK to a port.
func (w *wire) awaitSYNACK(port uint16) (uint32, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		b, err := w.recv(time.Second)
		if err != nil {
			return 0, err
		}
		r, ok := dissect(b)
		if ok && r.proto == protoTCP && len(r.l4) >= 20 && r.l4[13] == flagSYN|flagACK && binary.BigEndian.Uint16(r.l4[2:]) == port {
			return binary.BigEndian.Uint32(r.l4[4:]), nil
		}
	}
	return 0, fmt.Errorf("no SYN-ACK to port %d", port)
}

// framesRole sends what a hostile container root might: frames with other hosts'
// hardware addresses, claims to be the gateway, advertisements of a rogue router
// and DHCP server, ports of zero, impossible flags and cut frames.
func framesRole([]string) error {
	w, err := openWire()
	if err != nil {
		return err
	}
	addr := netip.MustParseAddr
	foreign := net.HardwareAddr{2, 0, 0, 0, 0, 99}
	ping := segment{
		kind: protoICMP, src: netip.AddrPortFrom(addr("10.0.2.100"), 1), dst: netip.AddrPortFrom(addr(remote4), 0),
		srcMAC: w.mac, dstMAC: w.gateway, payload: []byte("x"),
	}
	var list [][]byte
	for i := range 1000 { // more hardware addresses than any table should hold
		p := ping
		p.srcMAC = net.HardwareAddr{2, 1, 0, 0, byte(i >> 8), byte(i)}
		list = append(list, p.frame())
	}
	for _, gateway := range []string{"10.0.2.2", "10.0.2.3"} {
		list = append(list, arp(2, foreign, broadcastMAC, addr(gateway), addr("10.0.2.100")),
			arp(1, foreign, broadcastMAC, addr(gateway), addr(gateway)))
	}
	list = append(list, rogueRouter(foreign), rogueDHCP(foreign))
	for _, kind := range []byte{protoTCP, protoUDP} {
		for _, ports := range [][2]uint16{{0, 7}, {2000, 0}, {0, 0}} {
			for _, flags := range []byte{flagSYN, flagSYN | 1, 0, 0xff} {
				list = append(list, segment{
					kind: kind, flags: flags, urgent: 0xffff, srcMAC: w.mac, dstMAC: w.gateway, payload: []byte("x"),
					src: netip.AddrPortFrom(rawSource4, ports[0]), dst: netip.AddrPortFrom(addr(remote4), ports[1]),
				}.frame())
			}
		}
	}
	for _, b := range list[len(list)-4:] {
		for n := 14; n < len(b); n++ { // the kernel sends no less than a header
			list = append(list, b[:n])
		}
	}
	for _, b := range list {
		if err := w.send(b); err != nil {
			return err
		}
	}
	fmt.Print(len(list), " frames")
	return nil
}

// rogueRouter is a router advertisement (RFC 4861 4.2) with a prefix of its own.
func rogueRouter(mac net.HardwareAddr) []byte {
	src, all := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	l4 := []byte{134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	l4 = append(l4, 3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	l4 = append(l4, netip.MustParseAddr("2001:db8:ba::").AsSlice()...)
	s := segment{kind: protoICMP, src: netip.AddrPortFrom(src, 0), dst: netip.AddrPortFrom(all, 0)}
	s.checksum(l4, protoICMPv6)
	b := append(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(l4)), protoICMPv6, 255)
	b = append(append(b, src.AsSlice()...), all.AsSlice()...)
	return append(b, l4...)
}

// rogueDHCP is an offer that nobody asked for.
func rogueDHCP(mac net.HardwareAddr) []byte {
	m := make([]byte, 240, 300)
	m[0], m[1], m[2] = 2, 1, 6
	copy(m[236:], []byte{99, 130, 83, 99})
	m = append(m, 53, 1, 2, 54, 4, 10, 0, 2, 2, 255)
	return segment{
		kind: protoUDP, src: netip.MustParseAddrPort("10.0.2.2:67"), dst: netip.MustParseAddrPort("255.255.255.255:68"),
		srcMAC: mac, dstMAC: broadcastMAC, payload: m,
	}.frame()
}
