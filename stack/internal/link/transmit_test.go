package link

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

func TestSendUDP(t *testing.T) {
	for _, o := range []tap.Offloads{stacktest.AllOffloads, {}} {
		for _, f := range families {
			for _, size := range []int{0, 1, 2, 100, 1000, 1400} {
				r := newRig(t, 1500, o)
				r.SendUDP(f.outside, f.inside, pattern(size), 0)
				p := stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t),
					stacktest.Src(f.outside.Addr()), stacktest.Dst(f.inside.Addr()), stacktest.GSO(tap.GSONone, 0),
					stacktest.UDP(stacktest.SrcPort(f.outside.Port()), stacktest.DstPort(f.inside.Port()), stacktest.Content(pattern(size))))
				if p.Header.NeedsCsum != o.Csum {
					t.Errorf("%s, offloads %s: checksum left to the device: %v", f.name, o, p.Header.NeedsCsum)
				}
				if r.count.Load(flow.FramesOut) != 1 {
					t.Errorf("%d frames counted", r.count.Load(flow.FramesOut))
				}
			}
		}
	}
}

// A checksum that comes out as zero is sent as 0xffff: zero would mean none.
func TestSendUDPNeverLeavesTheChecksumOut(t *testing.T) {
	r := newRig(t, 1500, tap.Offloads{})
	r.SendUDP(outside4, inside4, []byte{0, 0}, 0)
	f := r.peer.Receive(t)
	sum := f.Bytes[14+20+6 : 14+20+8]
	// The payload that brings the sum to zero is the checksum itself.
	payload := bytes.Clone(sum)
	r.SendUDP(outside4, inside4, payload, 0)
	f = r.peer.Receive(t)
	if got := f.Bytes[14+20+6 : 14+20+8]; got[0] != 0xff || got[1] != 0xff {
		t.Errorf("checksum % x, want ff ff", got)
	}
}

func TestSendUDPSegments(t *testing.T) {
	for _, f := range families {
		payload := pattern(14500)
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.SendUDP(f.outside, f.inside, payload, 1400)
		p := stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.GSO(tap.GSOUDP, 1400), stacktest.UDP(stacktest.Content(payload)))
		if want := 14 + ipHeaderLen(f.inside.Addr()) + 8; int(p.Header.HdrLen) != want || !p.Header.NeedsCsum {
			t.Errorf("%s: header length %d, want %d", f.name, p.Header.HdrLen, want)
		}
		r.peer.Silent(t)

		for _, c := range []struct {
			name    string
			o       tap.Offloads
			mtu     int
			segment int
		}{
			{"no offloads", tap.Offloads{}, 1500, 1400},
			{"no USO", tap.Offloads{Csum: true, TSO: true}, 1500, 1400},
			{"segments larger than the MTU", stacktest.AllOffloads, 1300, 1400},
		} {
			r := newRig(t, c.mtu, c.o)
			r.SendUDP(f.outside, f.inside, payload, c.segment)
			got := collectUDP(t, r, f.inside.Addr(), len(payload))
			if !bytes.Equal(got, payload) {
				t.Errorf("%s, %s: content changed", f.name, c.name)
			}
		}
	}
}

// A batch that is larger than a packet can be, as one that came over the other
// family may be, is sent in several.
func TestSendUDPLargeBatches(t *testing.T) {
	for _, f := range families {
		for _, c := range []struct{ mtu, segment int }{{1500, 1400}, {65520, 40000}} {
			payload := pattern(100*1400 + 1)
			r := newRig(t, c.mtu, stacktest.AllOffloads)
			r.SendUDP(f.outside, f.inside, payload, c.segment)
			var got []byte
			for len(got) < len(payload) {
				p := stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.UDP())
				if len(p.Payload) != min(len(payload)-len(got), 65500/c.segment*c.segment) {
					t.Errorf("%s, segment %d: frame with %d bytes", f.name, c.segment, len(p.Payload))
				}
				got = append(got, p.Payload...)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("%s, segment %d: content changed", f.name, c.segment)
			}
			r.peer.Silent(t)
		}
	}
}

// collectUDP reads datagrams, in fragments or not, until n bytes of payload came.
func collectUDP(t *testing.T, r *rig, family netip.Addr, n int) []byte {
	t.Helper()
	var all, pending []byte
	for len(all) < n {
		p := stacktest.IP(t, family, r.peer.Receive(t), stacktest.GSO(tap.GSONone, 0))
		pending = append(pending, p.Transport...)
		if !p.IP.MoreFragments {
			all, pending = append(all, pending[inet.UDPHeaderLen:]...), nil
		}
	}
	r.peer.Silent(t)
	return all
}

// A device that turns out to know no UDP super-segments is asked once only, and
// nothing is lost.
func TestRefusedUSODegradesOnce(t *testing.T) {
	r := newRig(t, 1500, stacktest.AllOffloads)
	r.peer.RefuseUSO(fmt.Errorf("write to the tap device: %w", unix.EINVAL))
	for range 3 {
		r.SendUDP(outside4, inside4, pattern(14500), 1400)
		if got := collectUDP(t, r, inside4.Addr(), 14500); !bytes.Equal(got, pattern(14500)) {
			t.Error("content changed")
		}
		if r.dev.Offloads().USO {
			t.Error("the device was not told to do without")
		}
	}
}

// An interface that is down says nothing about what it can do when it is up.
func TestInterfaceDownDoesNotDegrade(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EIO, unix.ENETDOWN} {
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.peer.RefuseUSO(fmt.Errorf("write to the tap device: %w", errno))
		r.SendUDP(outside4, inside4, pattern(14500), 1400)
		if !r.dev.Offloads().USO {
			t.Errorf("%v ended UDP super-segments for good", errno)
		}
		r.peer.Silent(t)
	}
}

func TestSendErrorAndItsLimit(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		sent := stacktest.Datagram(f.inside, f.outside, pattern(100))
		r.SendError(icmp.PortUnreachable, 0, f.outside.Addr(), f.inside.Addr(), sent)
		stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Src(f.outside.Addr()), stacktest.Dst(f.inside.Addr()),
			stacktest.ICMPError(icmp.PortUnreachable, sent))
		// A quote that was cut after its headers is answered just the same.
		cut := sent[:ipHeaderLen(f.inside.Addr())+8]
		r.SendError(icmp.AdminProhibited, 0, f.outside.Addr(), f.inside.Addr(), cut)
		stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.ICMPError(icmp.AdminProhibited, cut))

		const tries = 20000
		r.peer.Discard()
		start := time.Now()
		for range tries {
			r.SendError(icmp.PortUnreachable, 0, f.outside.Addr(), f.inside.Addr(), sent)
		}
		allowed := uint64(errorBurst + time.Since(start).Seconds()*errorRate + 1)
		written, limited := r.count.Load(flow.ICMPErrorsSent)-2, r.count.Load(flow.ICMPErrorsLimited)
		if written > allowed || written < errorBurst-2 || written+limited != tries {
			t.Errorf("%s: %d errors sent, at most %d allowed, %d held back", f.name, written, allowed, limited)
		}
	}
}

func TestErrorBucket(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	for i := range errorBurst {
		if !b.takeAt(now) {
			t.Fatalf("event %d of the first burst refused", i)
		}
	}
	if b.takeAt(now) {
		t.Error("the burst has no end")
	}
	if now = now.Add(time.Second / errorRate); !b.takeAt(now) || b.takeAt(now) {
		t.Error("after the time of one event, not exactly one is allowed")
	}
	if b.takeAt(now.Add(-time.Hour)) {
		t.Error("a clock that goes back gives events away")
	}
	now = now.Add(24 * time.Hour)
	n := 0
	for b.takeAt(now) {
		n++
	}
	if n != errorBurst {
		t.Errorf("a day later %d events are allowed at once, want %d", n, errorBurst)
	}
}

func TestSendIPDropsWhatIsMalformed(t *testing.T) {
	r := newRig(t, 1500, stacktest.AllOffloads)
	good := stacktest.Datagram(outside4, inside4, pattern(10))
	for _, b := range [][]byte{nil, {0x45}, good[:19], good[:len(good)-1], make([]byte, 60)} {
		r.SendIP(b)
	}
	r.SendFrame(make([]byte, 13))
	r.peer.Silent(t)
	r.SendIP(good)
	stacktest.IPv4(t, r.peer.Receive(t), stacktest.UDP(stacktest.Content(pattern(10))))
	r.SendEchoReply(outside6.Addr(), inside6.Addr(), 7, 8, pattern(3000))
	if proto, b := join(t, r, 1500, false); proto != inet.ProtoICMPv6 || !bytes.Equal(b[8:], pattern(3000)) {
		t.Errorf("echo reply of %d bytes, protocol %d", len(b), proto)
	}
}

// outgoing builds a TCP packet as netstack would hand it over.
func outgoing(src, dst netip.AddrPort, payload []byte, gso stack.GSO) *stack.PacketBuffer {
	segment := stacktest.Segment{Src: src, Dst: dst, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: payload}.Packet()
	if gso.NeedsCsum {
		stacktest.Partial(segment)
	}
	ip := ipHeaderLen(src.Addr())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: ethernetLen + tap.HeaderLen + ip + 20, Payload: buffer.MakeWithData(payload),
	})
	copy(pkt.TransportHeader().Push(20), segment[ip:])
	copy(pkt.NetworkHeader().Push(ip), segment)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	if !src.Addr().Is4() {
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	}
	pkt.GSOOptions = gso
	return pkt
}

func (r *rig) writePackets(t *testing.T, pkts ...*stack.PacketBuffer) (int, tcpip.Error) {
	t.Helper()
	var list stack.PacketBufferList
	defer list.Reset()
	for _, p := range pkts {
		r.AddHeader(p)
		list.PushBack(p)
	}
	return r.WritePackets(list)
}

func TestOutgoingTCPHeaders(t *testing.T) {
	for _, f := range families {
		ip := uint16(ipHeaderLen(f.inside.Addr()))
		kind, gso := tap.GSOTCPv4, stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: 1448, L3HdrLen: ip, MaxSize: 65536}
		if ip == 40 {
			kind, gso.Type = tap.GSOTCPv6, stack.GSOTCPv6
		}
		for _, c := range []struct {
			name    string
			payload int
			gso     stack.GSO
			kind    tap.GSO
			segment int
			partial bool
		}{
			{"no data, full checksum", 0, stack.GSO{}, tap.GSONone, 0, false},
			{"no data, partial checksum", 0, gso, tap.GSONone, 0, true},
			{"one segment", 1448, gso, tap.GSONone, 0, true},
			{"one byte more", 1449, gso, kind, 1448, true},
			{"super-segment", 65000, gso, kind, 1448, true},
		} {
			r := newRig(t, 1500, stacktest.AllOffloads)
			if n, err := r.writePackets(t, outgoing(f.outside, f.inside, pattern(c.payload), c.gso)); n != 1 || err != nil {
				t.Fatalf("%s: %d packets, %v", c.name, n, err)
			}
			p := stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.GSO(c.kind, c.segment), stacktest.TCP(stacktest.Content(pattern(c.payload))))
			if p.Header.NeedsCsum != c.partial {
				t.Errorf("%s over %s: checksum left to the device: %v", c.name, f.name, p.Header.NeedsCsum)
			}
		}
	}
}

func TestWritePacketsAfterClose(t *testing.T) {
	r := newRig(t, 1500, stacktest.AllOffloads)
	first, second := outgoing(outside4, inside4, nil, stack.GSO{}), outgoing(outside4, inside4, nil, stack.GSO{})
	r.dev.Close()
	n, err := r.writePackets(t, first, second)
	if _, closed := err.(*tcpip.ErrClosedForSend); n != 0 || !closed {
		t.Errorf("%d packets, error %v", n, err)
	}
	if err := r.Serve(); err != os.ErrClosed {
		t.Errorf("Serve: %v", err)
	}
}
