package link

import (
	"testing"

	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// allocs counts allocations of f. The race detector makes sync.Pool forget at
// random, so that the bound holds on average only and is left to the other run.
func allocs(t *testing.T, name string, limit float64, f func()) {
	t.Helper()
	f()
	if n := testing.AllocsPerRun(2000, f); n > limit && !raceEnabled {
		t.Errorf("%s: %v allocations, at most %v allowed", name, n, limit)
	}
}

// TestAllocations bounds what a packet costs the garbage collector: a received
// segment takes netstack's packet with its view list and nothing else, a
// datagram in either direction nothing at all.
func TestAllocations(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.quiet = true
		r.peer.Discard()
		partial := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: pattern(40)}.Packet()
		h := stacktest.Partial(partial)
		frame := stacktest.Frame(partial)
		allocs(t, f.name+": receive TCP", 0, func() { r.putFrame(h, frame) })
		full := stacktest.Frame(stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: pattern(40)}.Packet())
		allocs(t, f.name+": receive TCP with checksum to verify", 0, func() { r.putFrame(tap.Header{}, full) })
		datagram := stacktest.Frame(stacktest.Datagram(f.inside, f.outside, pattern(500)))
		allocs(t, f.name+": receive UDP", 0, func() { r.putFrame(tap.Header{}, datagram) })
		payload := pattern(1000)
		allocs(t, f.name+": SendUDP", 0, func() { r.SendUDP(f.outside, f.inside, payload, 0) })
		segments := pattern(14000)
		allocs(t, f.name+": SendUDP in segments", 0, func() { r.SendUDP(f.outside, f.inside, segments, 1400) })
	}
}
