package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// onSYN records the SYNs that the handler sees; it takes them if take.
func (r *rig) onSYN(take bool) *[]Packet {
	seen := new([]Packet)
	keep := r.handle(seen)
	r.cfg.Handlers.SYN = func(p Packet) bool {
		keep(p)
		return take
	}
	return seen
}

func TestSYNsAreOffered(t *testing.T) {
	for _, f := range families {
		for _, take := range []bool{true, false} {
			r := newRig(t, 1500, stacktest.AllOffloads)
			seen := r.onSYN(take)
			s := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 7, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}
			full, partial := s.Packet(), s.Packet()
			h := stacktest.Partial(partial)
			r.putFrame(tap.Header{}, stacktest.Pad(stacktest.Frame(full), 80))
			r.putFrame(h, stacktest.Frame(partial))
			s.Flags |= stacktest.PSH | stacktest.URG
			s.Payload = pattern(1000)
			r.putFrame(tap.Header{}, stacktest.Frame(s.Packet()))
			if len(*seen) != 3 || (len(r.delivered) == 0) != take {
				t.Fatalf("%s: %d SYNs seen, %d delivered", f.name, len(*seen), len(r.delivered))
			}
			for i, want := range [][]byte{full, partial, s.Packet()} {
				if p := (*seen)[i]; !bytes.Equal(p.Bytes, want) || p.Src != f.inside.Addr() || p.Partial != (i == 1) {
					t.Errorf("%s: SYN %d is % x, partial %v", f.name, i, p.Bytes, p.Partial)
				}
			}
		}
	}
}

// Nothing else is offered: other flags, pieces, what is damaged or comes from an
// address that is not the container's.
func TestOtherSegmentsAreNotOffered(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		seen := r.onSYN(true)
		s := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 7, Options: stacktest.MSS(1460)}
		for flags := range uint8(64) {
			if flags&(stacktest.SYN|stacktest.ACK|stacktest.RST|stacktest.FIN) == stacktest.SYN {
				continue
			}
			s.Flags = flags
			r.putFrame(tap.Header{}, stacktest.Frame(s.Packet()))
		}
		s.Flags = stacktest.SYN
		delivered := len(r.delivered)
		damaged := s.Packet()
		damaged[len(damaged)-1]++
		r.putFrame(tap.Header{}, stacktest.Frame(damaged))
		spoofed := s
		spoofed.Src = f.outside
		r.putFrame(tap.Header{}, stacktest.Frame(spoofed.Packet()))
		if r.drops() != 2 || len(r.delivered) != delivered {
			t.Errorf("%s: %d drops, %v", f.name, r.drops(), r.count.Snapshot())
		}
		r.putFrame(tap.Header{NeedsCsum: true, GSO: tap.GSOTCPv4, Segment: 100}, stacktest.Frame(s.Packet()))
		large := s
		large.Payload = pattern(3000)
		for _, frame := range stacktest.Fragments(large.Packet(), 1500, 1) {
			r.putFrame(tap.Header{}, stacktest.Frame(frame))
		}
		if len(*seen) != 0 {
			t.Errorf("%s: %d segments offered", f.name, len(*seen))
		}
		if f.inside.Addr().Is4() {
			r.putFrame(tap.Header{}, stacktest.Frame(withOptions(s.Packet(), 1, 1, 1, 1)))
		} else {
			r.putFrame(tap.Header{}, stacktest.Frame(extended(s.Packet(), 60, make([]byte, 8)...)))
		}
		if len(*seen) != 1 {
			t.Errorf("%s: a SYN behind options was not offered", f.name)
		}
	}
}

// written returns the next frame, which must be one for the container.
func (r *rig) written(t *testing.T) (tap.Header, []byte) {
	t.Helper()
	f := r.peer.Receive(t)
	if !bytes.Equal(f.Bytes[:6], stacktest.ContainerMAC[:]) || !bytes.Equal(f.Bytes[6:12], stacktest.GatewayMAC[:]) {
		t.Errorf("frame % x", f.Bytes[:14])
	}
	packet := f.Bytes[ethernetLen:]
	want := uint16(0x0800)
	if packet[0]>>4 == 6 {
		want = 0x86dd
	}
	if got := binary.BigEndian.Uint16(f.Bytes[12:]); got != want {
		t.Errorf("type %04x, want %04x", got, want)
	}
	return f.Header, packet
}

func TestReinjectIsAsReceived(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		seen := r.onSYN(true)
		s := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 7, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}
		full, partial := s.Packet(), s.Packet()
		syn := stacktest.Partial(partial)
		datagram, partialDatagram := stacktest.Datagram(f.inside, f.outside, pattern(500)), stacktest.Datagram(f.inside, f.outside, pattern(500))
		udp := stacktest.Partial(partialDatagram)
		train := stacktest.Datagram(f.inside, f.outside, pattern(5000))
		batch := stacktest.Partial(train)
		batch.GSO, batch.Segment = tap.GSOUDP, 1200
		for _, c := range []struct {
			h tap.Header
			b []byte
		}{{tap.Header{}, full}, {syn, partial}, {tap.Header{}, datagram}, {udp, partialDatagram}, {batch, train}} {
			r.reset()
			*seen = nil
			r.putFrame(c.h, stacktest.Frame(c.b))
			got := append(*seen, r.udp...)
			if len(got) != 1 {
				t.Fatalf("%s: %d packets", f.name, len(got))
			}
			if err := r.Reinject(got[0]); err != nil {
				t.Fatal(err)
			}
			h, b := r.written(t)
			h.HdrLen = 0 // a hint
			if !bytes.Equal(b, c.b) || h != c.h {
				t.Errorf("%s: wrote %+v and % x, got %+v and % x", f.name, h, b, c.h, c.b)
			}
		}
	}
}

// A batch whose checksum is whole is given the partial one that super-segments need,
// and a device that takes none gets single datagrams.
func TestReinjectBatch(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		train := stacktest.Datagram(f.inside, f.outside, pattern(2500))
		h, _ := inet.Parse(train)
		p := Packet{Header: h, Bytes: train, Segment: 1000}
		before := bytes.Clone(train)
		if err := r.Reinject(p); err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(train)
		vnet := stacktest.Partial(want)
		vnet.GSO, vnet.Segment, vnet.HdrLen = tap.GSOUDP, 1000, vnet.CsumStart+8
		if got, b := r.written(t); got != vnet || !bytes.Equal(b, want) || !bytes.Equal(train, before) {
			t.Errorf("%s: wrote %+v % x", f.name, got, b[:60])
		}
		r.peer.RefuseUSO(unix.EINVAL)
		if err := r.Reinject(p); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < 2500; at += 1000 {
			got := stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Src(f.inside.Addr()), stacktest.Dst(f.outside.Addr()),
				stacktest.UDP(stacktest.SrcPort(f.inside.Port()), stacktest.DstPort(f.outside.Port())))
			if !bytes.Equal(got.Payload, pattern(2500)[at:min(at+1000, 2500)]) {
				t.Errorf("%s: datagram at %d has %d bytes", f.name, at, len(got.Payload))
			}
		}
		r2 := newRig(t, 1500, stacktest.AllOffloads)
		r2.peer.RefuseUSO(unix.ENETDOWN)
		if err := r2.Reinject(p); !errors.Is(err, unix.ENETDOWN) {
			t.Errorf("%s: %v, want ENETDOWN", f.name, err)
		}
		cut := p
		cut.Bytes = cut.Bytes[:cut.HeaderLen+4]
		cut.TotalLen = len(cut.Bytes)
		if err := r.Reinject(cut); err != nil {
			t.Error(err)
		}
		r.peer.Silent(t)
	}
}

// What came in fragments goes back in fragments.
func TestReinjectLarge(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		b := stacktest.Datagram(f.inside, f.outside, pattern(4000))
		h, _ := inet.Parse(b)
		if err := r.Reinject(Packet{Header: h, Bytes: b}); err != nil {
			t.Fatal(err)
		}
		for i, want := range stacktest.Fragments(b, 1500, 1) {
			if _, got := r.written(t); len(got) != len(want) {
				t.Errorf("%s: fragment %d has %d bytes, want %d", f.name, i, len(got), len(want))
			}
		}
		r.peer.Silent(t)
	}
}

func TestReinjectClosed(t *testing.T) {
	r := newRig(t, 1500, stacktest.AllOffloads)
	b := stacktest.Datagram(inside4, outside4, nil)
	h, _ := inet.Parse(b)
	r.dev.Close()
	if err := r.Reinject(Packet{Header: h, Bytes: b}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want os.ErrClosed", err)
	}
}

// Resubmit gives netstack what it would have got.
func TestResubmit(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		seen := r.onSYN(true)
		b := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 7, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}.Packet()
		vnet := stacktest.Partial(b)
		r.putFrame(vnet, stacktest.Frame(b))
		r.Resubmit((*seen)[0])
		r.cfg.Handlers.SYN = nil
		r.putFrame(vnet, stacktest.Frame(b))
		if len(r.delivered) != 2 || !bytes.Equal(r.delivered[0], r.delivered[1]) || !bytes.Equal(r.delivered[0], b) {
			t.Errorf("%s: delivered % x", f.name, r.delivered)
		}
		if r.count.Load(flow.FramesIn) != 2 {
			t.Errorf("%s: counted %d frames", f.name, r.count.Load(flow.FramesIn))
		}
	}
}

func TestSendReset(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		for _, payload := range [][]byte{nil, pattern(10)} {
			s := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 0xffffffff, Flags: stacktest.SYN, Options: stacktest.MSS(1460), Payload: payload}
			b := s.Packet()
			h, _ := inet.Parse(b)
			r.SendReset(Packet{Header: h, Bytes: b})
			stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.Src(f.outside.Addr()), stacktest.Dst(f.inside.Addr()),
				stacktest.TCP(stacktest.SrcPort(f.outside.Port()), stacktest.DstPort(f.inside.Port()), stacktest.SeqNum(0),
					stacktest.Flags(stacktest.RST|stacktest.ACK), stacktest.AckNum(uint32(len(payload)))))
			h.TotalLen = h.HeaderLen + 19
			r.SendReset(Packet{Header: h, Bytes: b[:h.TotalLen]})
			r.peer.Silent(t)
		}
	}
}
