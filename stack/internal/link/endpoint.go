package link

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/tap"
)

// ethernetLen is the length of an Ethernet header without VLAN tag.
const ethernetLen = header.EthernetMinimumSize

// Device is where frames come from and go to. It is the interface of
// tap.Device, which says what the methods promise.
type Device interface {
	Readv(hdr []byte, bufs ...[]byte) (int, error)
	Writev(iov []unix.Iovec) error
	Offloads() tap.Offloads
	DisableUSO() bool
}

// Packet is an IP packet from the container, whole and in one piece.
type Packet struct {
	inet.Header
	// Bytes is the packet from its IP header to its end, without padding. It
	// is valid only during the call.
	Bytes []byte
	// Segment is not 0 when the payload is several UDP datagrams behind one
	// header, each of Segment bytes, the last one perhaps shorter.
	Segment int
	// Partial says that the transport checksum is that of the pseudo-header only
	// (NEEDS_CSUM of the virtio header): the packet is whole by the kernel's word.
	Partial bool
}

// Service answers what the link itself answers. It is the interface of
// service.Service.
type Service interface {
	Handle(now time.Time, frame []byte) (replies [][]byte, handled bool)
}

// Handlers get what does not go through netstack. They are called on the reading
// goroutine and must not block.
type Handlers struct {
	UDP  func(Packet)
	ICMP func(Packet)
	// SYN sees every unfragmented TCP segment with SYN and without ACK, RST and FIN
	// before netstack does; true means that it has dealt with it. It may be nil.
	SYN func(Packet) bool
}

// Config describes an Endpoint. All fields are needed unless they say otherwise.
type Config struct {
	Device     Device
	MTU        int
	GatewayMAC net.HardwareAddr
	// ContainerMAC is where frames go; if it is zero, to who sent the last frame that
	// could be the container's.
	ContainerMAC net.HardwareAddr
	// WhoHas returns a frame that asks for the Ethernet address of an IPv4 address. It
	// is needed where ContainerMAC is zero.
	WhoHas func(target netip.Addr) []byte
	// MaxFrame is how long a frame may be, in bytes with its Ethernet header; 0 means
	// what a device can deliver.
	MaxFrame int
	// Source says why a packet may not come from an address, "" if it may.
	Source   func(packet inet.Header) (reason string)
	Service  Service
	Handlers Handlers
	Counters *flow.Counters
}

// Endpoint implements stack.LinkEndpoint and stack.GSOEndpoint over a
// Device. Serve must run for it to receive anything.
type Endpoint struct {
	cfg     Config
	gateway tcpip.LinkAddress
	far     farEnd
	errors  bucket
	ack     heldACK

	mu         sync.RWMutex // guards dispatcher and mtu
	dispatcher stack.NetworkDispatcher
	mtu        uint32
}

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)
)

// New makes an endpoint. It does not take ownership of the device.
func New(cfg Config) *Endpoint {
	if cfg.MaxFrame == 0 || cfg.MaxFrame > headLen+bodyLen {
		cfg.MaxFrame = headLen + bodyLen
	}
	e := &Endpoint{
		cfg:     cfg,
		gateway: tcpip.LinkAddress(cfg.GatewayMAC),
		mtu:     uint32(cfg.MTU),
	}
	e.far.init(cfg.ContainerMAC)
	return e
}

// MTU implements stack.LinkEndpoint.
func (e *Endpoint) MTU() uint32 {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.mtu
}

// SetMTU implements stack.LinkEndpoint.
func (e *Endpoint) SetMTU(mtu uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mtu = mtu
}

// MaxHeaderLength implements stack.LinkEndpoint: Ethernet and virtio header, so
// that all headers of a packet share one view.
func (*Endpoint) MaxHeaderLength() uint16 { return ethernetLen + tap.HeaderLen }

// LinkAddress implements stack.LinkEndpoint.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return e.gateway }

// SetLinkAddress implements stack.LinkEndpoint; the address is fixed.
func (*Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. Received checksums are verified
// here or vouched for by the kernel. CapabilityTXChecksumOffload is left out:
// with it netstack sends SYN-ACKs with no checksum at all.
func (*Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint. Frames of more than 64 KiB cannot be
// expressed in an IPv4 header.
func (*Endpoint) GSOMaxSize() uint32 { return 65536 }

// SupportedGSO implements stack.GSOEndpoint.
func (e *Endpoint) SupportedGSO() stack.SupportedGSO {
	if o := e.cfg.Device.Offloads(); o.TSO && o.Csum {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// Attach implements stack.LinkEndpoint.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
}

// IsAttached implements stack.LinkEndpoint.
func (e *Endpoint) IsAttached() bool { return e.attached() != nil }

func (e *Endpoint) attached() stack.NetworkDispatcher {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher
}

// Wait implements stack.LinkEndpoint. The endpoint owns no goroutine: Serve runs
// on its caller's.
func (*Endpoint) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (*Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint.
func (e *Endpoint) AddHeader(pkt *stack.PacketBuffer) {
	eth := header.Ethernet(pkt.LinkHeader().Push(ethernetLen))
	eth.Encode(&header.EthernetFields{SrcAddr: e.gateway, Type: pkt.NetworkProtocolNumber})
	far, known := e.far.address()
	if !known {
		e.whoHas(pkt)
	}
	copy(eth, far[:])
}

// ParseHeader implements stack.LinkEndpoint.
func (*Endpoint) ParseHeader(pkt *stack.PacketBuffer) bool {
	b, ok := pkt.LinkHeader().Consume(ethernetLen)
	if ok {
		pkt.NetworkProtocolNumber = header.Ethernet(b).Type()
	}
	return ok
}

// Close implements stack.LinkEndpoint. The device belongs to the engine.
func (e *Endpoint) Close() { e.ack.stop() }

// SetOnCloseAction implements stack.LinkEndpoint.
func (*Endpoint) SetOnCloseAction(func()) {}
