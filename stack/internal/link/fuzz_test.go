package link

import (
	"testing"

	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// FuzzReceive: whatever a container puts on the wire, nothing panics, no packet
// is larger than its frame, and none is left behind (see TestMain).
func FuzzReceive(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.frame, s.h.NeedsCsum, false, uint8(0), uint16(0))
		f.Add(s.frame[:len(s.frame)/2], false, true, uint8(tap.GSOUDP), uint16(1))
	}
	for _, fam := range families {
		for _, p := range stacktest.Fragments(stacktest.Datagram(fam.inside, fam.outside, pattern(3000)), 1280, 5) {
			f.Add(stacktest.Frame(p), false, false, uint8(0), uint16(0))
		}
	}
	r := newRig(f, 1500, stacktest.AllOffloads)
	r.withNetstack(f)
	r.peer.Discard()
	f.Fuzz(func(t *testing.T, frame []byte, needs, valid bool, gso uint8, segment uint16) {
		if len(frame) > headLen+bodyLen {
			return
		}
		r.reset()
		before := r.drops()
		h := tap.Header{NeedsCsum: needs, DataValid: valid, GSO: tap.GSO(gso % 4), Segment: segment, CsumStart: segment, HdrLen: segment}
		r.putFrame(h, frame)
		for _, p := range append(r.udp, r.icmp...) {
			if p.HeaderLen > p.TotalLen || p.TotalLen != len(p.Bytes) || len(p.Bytes) > 65535+40 {
				t.Fatalf("packet of %d bytes, header %d, total %d", len(p.Bytes), p.HeaderLen, p.TotalLen)
			}
		}
		if len(frame) < ethernetLen && (r.passed() != 0 || r.drops() != before+1) {
			t.Fatalf("runt of %d bytes: %d passed, %d drops", len(frame), r.passed(), r.drops()-before)
		}
	})
}
