package link

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/proto/inet"
)

// Behind a TAP the kernel tells the container's Ethernet address. On a line to a
// virtual machine nobody does: there frames go to whom the last one came from that the
// container may send. The first one is not enough, because an interface may be given
// another address while it is up. What is not the container's by its IP source does not
// count, so that a stray frame moves nothing; and whoever can send frames here is the
// only one who gets any, so there is nobody to take them from.
//
// Several machines behind the line, by a bridge on its far side, are not told apart.

// broadcast is where frames go before there is an address.
var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// askEvery is how often the container is asked for its address at most. Linux asks a
// neighbour once a second (net.ipv4.neigh.default.retrans_time_ms); netstack repeats
// a SYN after as long.
const askEvery = 250 * time.Millisecond

// farEnd is the Ethernet address of the container's interface.
type farEnd struct {
	learns bool
	mac    atomic.Uint64 // its six bytes; 0 if not known
	asked  atomic.Int64  // nanoseconds since 1970
}

func (f *farEnd) init(mac net.HardwareAddr) {
	if len(mac) == 6 {
		f.mac.Store(packMAC(mac))
	}
	f.learns = f.mac.Load() == 0
}

// address is where to send to.
func (f *farEnd) address() (mac [6]byte, known bool) {
	v := f.mac.Load()
	if v == 0 {
		return broadcast, false
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return [6]byte(b[2:]), true
}

// packMAC puts six bytes into one word.
func packMAC(b []byte) uint64 {
	_ = b[5]
	return uint64(binary.BigEndian.Uint16(b))<<32 | uint64(binary.BigEndian.Uint32(b[2:]))
}

// learn notes who sent a frame, of which head is the beginning.
func (e *Endpoint) learn(head []byte) {
	source := head[6:ethernetLen]
	v := packMAC(source)
	if v == e.far.mac.Load() || v == 0 || source[0]&1 != 0 || v == packMAC(e.cfg.GatewayMAC) {
		return
	}
	if ip, ok := ipSource(head); ok && e.mayHave(ip) {
		e.far.mac.Store(v)
	}
}

// mayHave reports whether the container may have an address, for the link alone too.
func (e *Endpoint) mayHave(ip netip.Addr) bool {
	return ip.Is6() && ip.IsLinkLocalUnicast() || e.cfg.Source(inet.Header{Src: ip}) == ""
}

// ipSource is the IP address from which the sender of a frame sends, or which it
// claims in ARP (RFC 826).
func ipSource(head []byte) (ip netip.Addr, ok bool) {
	p := head[ethernetLen:]
	switch binary.BigEndian.Uint16(head[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		if len(p) >= inet.IPv4HeaderLen && p[0]>>4 == 4 {
			return netip.AddrFrom4([4]byte(p[12:])), true
		}
	case uint16(header.IPv6ProtocolNumber):
		if len(p) >= inet.IPv6HeaderLen && p[0]>>4 == 6 {
			return netip.AddrFrom16([16]byte(p[8:])), true
		}
	case uint16(header.ARPProtocolNumber):
		if arp := header.ARP(p); arp.IsValid() && packMAC(arp.HardwareAddressSender()) == packMAC(head[6:]) {
			return netip.AddrFrom4([4]byte(arp.ProtocolAddressSender())), true
		}
	}
	return netip.Addr{}, false
}

// whoHas asks for the address that a packet on its way out needs.
func (e *Endpoint) whoHas(pkt *stack.PacketBuffer) {
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber && len(pkt.NetworkHeader().Slice()) >= header.IPv4MinimumSize {
		_, to := addresses(pkt)
		e.ask(netip.AddrFrom4(to.As4()))
	}
}

// ask asks a container that has not said a word who has an address, because kernels
// take no TCP that was sent to all. Who has an IPv6 address has announced it (RFC 4862
// section 5.4).
func (e *Endpoint) ask(ip netip.Addr) {
	last, now := e.far.asked.Load(), time.Now().UnixNano()
	if !ip.Is4() || now-last < int64(askEvery) || !e.far.asked.CompareAndSwap(last, now) {
		return
	}
	e.SendFrame(e.cfg.WhoHas(ip))
}
