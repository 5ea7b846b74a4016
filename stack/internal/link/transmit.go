package link

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/tap"
)

// vector is what one writev needs. Vectors are pooled: their memory is passed
// to the kernel by address and would escape on every packet otherwise.
type vector struct {
	// hdr holds virtio, Ethernet, IP and UDP header.
	hdr [tap.HeaderLen + ethernetLen + 40 + 8]byte
	iov []unix.Iovec
}

var vectors = sync.Pool{New: func() any { return &vector{iov: make([]unix.Iovec, 0, 24)} }}

func (v *vector) add(b []byte) {
	if len(b) == 0 {
		return
	}
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	v.iov = append(v.iov, iov)
}

func (v *vector) free() {
	clear(v.iov) // no reference into buffers that are not ours any more
	v.iov = v.iov[:0]
	vectors.Put(v)
}

// WritePackets implements stack.LinkWriter. A frame that the device does not
// take while its link is down is lost like on any wire.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		err := e.sendPacket(pkt)
		if errors.Is(err, os.ErrClosed) {
			return n, &tcpip.ErrClosedForSend{}
		}
		n++
	}
	return n, nil
}

// seal puts the virtio header before a packet. It is done while netstack still
// lends the packet, which it looks at once more after that.
func seal(pkt *stack.PacketBuffer) {
	vnet := gsoHeader(pkt)
	vnet.Put(pkt.VirtioNetHeader().Push(tap.HeaderLen))
}

// writePacket writes a sealed packet and changes nothing about it.
func (e *Endpoint) writePacket(pkt *stack.PacketBuffer) error {
	v := vectors.Get().(*vector)
	defer v.free()
	views, offset := pkt.AsViewList()
	for view := views.Front(); view != nil; view = view.Next() {
		b := view.AsSlice()
		if offset >= len(b) {
			offset -= len(b)
			continue
		}
		v.add(b[offset:])
		offset = 0
	}
	return e.write(v)
}

// gsoHeader describes a packet that netstack built. Its headers must not have
// grown a virtio header yet. Segments with data carry the pseudo-header sum
// only; SYN, SYN-ACK and RST have an empty GSO and a full checksum.
func gsoHeader(pkt *stack.PacketBuffer) tap.Header {
	gso := pkt.GSOOptions
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		return tap.Header{}
	}
	h := tap.Header{
		NeedsCsum:  true,
		HdrLen:     uint16(pkt.HeaderSize()),
		CsumStart:  ethernetLen + gso.L3HdrLen,
		CsumOffset: gso.CsumOffset,
	}
	if pkt.Data().Size() > int(gso.MSS) {
		h.Segment = gso.MSS
		h.GSO = tap.GSOTCPv4
		if gso.Type == stack.GSOTCPv6 {
			h.GSO = tap.GSOTCPv6
		}
	}
	return h
}

// write sends the vector and counts it.
func (e *Endpoint) write(v *vector) error {
	err := e.cfg.Device.Writev(v.iov)
	switch {
	case err == nil:
		e.cfg.Counters.Inc(flow.FramesOut)
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrClosed): // else it is sent otherwise, or all is over
		e.cfg.Counters.Inc(flow.DropUnsent)
	}
	return err
}

// SendFrame sends a complete Ethernet frame.
func (e *Endpoint) SendFrame(frame []byte) {
	v := vectors.Get().(*vector)
	defer v.free()
	if len(frame) < ethernetLen {
		return
	}
	n := tap.HeaderLen + copy(v.hdr[tap.HeaderLen:], frame[:ethernetLen])
	tap.Header{}.Put(v.hdr[:])
	v.add(v.hdr[:n])
	v.add(frame[ethernetLen:])
	_ = e.write(v) // lost like on any wire
}
