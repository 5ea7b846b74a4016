package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// attempt is one try to reach something. The roles @raw and @kernel read a list of
// them from their input and print the list with results.
type attempt struct {
	// Proto is "tcp", "udp" or "icmp".
	Proto string
	Dst   netip.AddrPort
	// Src replaces the source address of a raw frame; its port that of TCP and UDP
	// if FixPort is set.
	Src     netip.AddrPort
	FixPort bool
	// ToMAC and FromMAC replace a raw frame's hardware addresses.
	ToMAC, FromMAC net.HardwareAddr
	// Bind binds a kernel socket to the interface, so that no local route applies.
	Bind bool
	// Mark is a kernel socket's SO_MARK.
	Mark int
	// Want is the result that has to come: it is waited for as long as it takes.
	Want string
	// Result is "silence", "banner" (payload came back, or an echo reply),
	// "handshake", "reset", "icmp TYPE/CODE", or the name of an error.
	Result string
	// ToUs says that the answer's frame had our hardware address.
	ToUs bool
}

func (a attempt) String() string {
	s := fmt.Sprintf("%s to %v", a.Proto, a.Dst)
	if a.Src.IsValid() {
		s += fmt.Sprintf(" from %v", a.Src)
	}
	if a.ToMAC != nil || a.FromMAC != nil {
		s += fmt.Sprintf(" (frame %v > %v)", a.FromMAC, a.ToMAC)
	}
	if a.Bind {
		s += " bound to the interface"
	}
	if a.Mark != 0 {
		s += fmt.Sprintf(" marked %#x", a.Mark)
	}
	return s
}

// Sources of raw frames: addresses of the container's network that its kernel does
// not have, so that the kernel does not answer with resets.
var (
	rawSource4 = netip.MustParseAddr("10.0.2.77")
	rawSource6 = netip.MustParseAddr("fd00::77")
)

// rawPorts is the first source port, and the first echo identifier. It differs from
// prober to prober, so that none sees the answers to another.
var rawPorts = 2000 + os.Getpid()*500%60000

// quiet is how long answers are waited for after the last one.
const quiet = 1500 * time.Millisecond

// rawRole tries a list with raw frames, all at once.
func rawRole([]string) error {
	var list []attempt
	if err := json.NewDecoder(os.Stdin).Decode(&list); err != nil {
		return err
	}
	w, err := openWire()
	if err != nil {
		return err
	}
	p := &rawProber{wire: w, list: list}
	for i := range list {
		p.list[i].Result = "silence"
		if err := w.send(p.first(i).frame()); err != nil {
			return err
		}
	}
	for start, last := time.Now(), time.Now(); time.Since(last) < quiet || p.wants() && time.Since(start) < patience; {
		b, err := w.recv(quiet / 4)
		if err != nil {
			return err
		}
		if b != nil && p.take(b) {
			last = time.Now()
		}
	}
	return json.NewEncoder(os.Stdout).Encode(p.list)
}

type rawProber struct {
	*wire
	list []attempt
}

// wants reports whether a result that has to come has not come yet.
func (p *rawProber) wants() bool {
	return slices.ContainsFunc(p.list, func(a attempt) bool { return a.Want != "" && a.Result != a.Want })
}

// first is the packet that an attempt begins with.
func (p *rawProber) first(i int) segment {
	a := p.list[i]
	s := segment{src: a.Src, dst: a.Dst, srcMAC: p.mac, dstMAC: p.gateway, seq: 1000}
	if !a.Src.IsValid() {
		s.src = netip.AddrPortFrom(rawSource4, 0)
		if a.Dst.Addr().Is6() {
			s.src = netip.AddrPortFrom(rawSource6, 0)
		}
	}
	if !a.FixPort {
		s.src = netip.AddrPortFrom(s.src.Addr(), uint16(rawPorts+i))
	}
	if a.ToMAC != nil {
		s.dstMAC = a.ToMAC
	}
	if a.FromMAC != nil {
		s.srcMAC = a.FromMAC
	}
	switch a.Proto {
	case "tcp":
		s.kind, s.flags = protoTCP, flagSYN
	case "udp":
		s.kind, s.payload = protoUDP, []byte("who is there?")
	case "icmp":
		s.kind, s.payload = protoICMP, []byte("are you there?")
	}
	return s
}

// take looks at an incoming frame; true if it answers an attempt.
func (p *rawProber) take(b []byte) bool {
	r, ok := dissect(b)
	if !ok || len(r.l4) < 8 {
		return false
	}
	port, result := -1, ""
	switch r.proto {
	case protoTCP:
		port, result = p.takeTCP(r)
	case protoUDP:
		port, result = int(binary.BigEndian.Uint16(r.l4[2:])), "banner"
	case protoICMP, protoICMPv6:
		port, result = takeICMP(r)
	}
	i := port - rawPorts
	if i < 0 || i >= len(p.list) || result == "" {
		return false
	}
	if p.list[i].Result != "banner" { // nothing that comes later makes it less
		p.list[i].Result = result
	}
	p.list[i].ToUs = r.dstMAC.String() == p.mac.String()
	return true
}

// takeTCP completes a handshake, so that a banner may follow.
func (p *rawProber) takeTCP(r received) (port int, result string) {
	if len(r.l4) < 20 || int(r.l4[12]>>4)*4 > len(r.l4) {
		return -1, ""
	}
	flags, payload := r.l4[13], r.l4[r.l4[12]>>4*4:]
	port = int(binary.BigEndian.Uint16(r.l4[2:]))
	switch {
	case len(payload) > 0:
		return port, "banner" + p.reply(r, flagRST)
	case flags&flagRST != 0:
		return port, "reset"
	case flags&flagSYN == 0:
		return port, ""
	}
	return port, "handshake" + p.reply(r, flagACK)
}

// reply answers a segment; the result is empty unless that failed.
func (p *rawProber) reply(r received, flags byte) string {
	s := segment{
		kind: protoTCP, flags: flags, srcMAC: p.mac, dstMAC: p.gateway,
		src: netip.AddrPortFrom(r.dst, binary.BigEndian.Uint16(r.l4[2:])), dst: netip.AddrPortFrom(r.src, binary.BigEndian.Uint16(r.l4)),
		seq: binary.BigEndian.Uint32(r.l4[8:]), ack: binary.BigEndian.Uint32(r.l4[4:]) + 1,
	}
	if err := p.send(s.frame()); err != nil {
		return ": " + err.Error()
	}
	return ""
}

// takeICMP sorts echo replies and errors; an error belongs to the attempt whose
// packet it quotes.
func takeICMP(r received) (port int, result string) {
	kind, code := r.l4[0], r.l4[1]
	switch {
	case r.proto == protoICMP && kind == 0, r.proto == protoICMPv6 && kind == 129:
		return int(binary.BigEndian.Uint16(r.l4[4:])), "banner"
	case r.proto == protoICMP && (kind == 3 || kind == 11), r.proto == protoICMPv6 && kind < 128:
	default:
		return -1, ""
	}
	proto, _, _, l4, ok := dissectIP(r.l4[8:])
	if !ok || len(l4) < 8 {
		return -1, ""
	}
	port = int(binary.BigEndian.Uint16(l4))
	if proto == protoICMP || proto == protoICMPv6 {
		port = int(binary.BigEndian.Uint16(l4[4:]))
	}
	return port, fmt.Sprintf("icmp %d/%d", kind, code)
}
