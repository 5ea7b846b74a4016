package hostsock

import "sync/atomic"

// appetite is how much a socket is asked for by one receive, from what came
// before: many messages of a busy socket, few of a quiet one, in slots of the size
// that its messages have. The zero value is that of a quiet socket.
type appetite struct {
	// depth is how many messages, slot how many bytes each; 0 is not known yet.
	// Two goroutines may use a socket that is drained; then one's figures are lost.
	depth, slot atomic.Int32
}

// firstSlot is the slot of a socket that has received nothing: a datagram of any
// usual network, or one of jumbo frames run over.
const firstSlot = 2048

// next returns what to ask for. The slots together fit the buffer of a reader.
func (a *appetite) next() (depth, slot int) {
	slot = int(a.slot.Load())
	if slot == 0 {
		slot = firstSlot
	}
	if slot > receiveBuffer/fewMessages {
		return 1, receiveBuffer
	}
	depth = max(fewMessages, int(a.depth.Load()))
	return min(depth, MaxPayload/slot), slot
}

// got notes how many of the messages asked for came, and the size of the largest.
// The slot follows every call: sizes change rarely, and then for good. The depth
// grows fast, because a busy socket fills up, and falls slowly.
func (a *appetite) got(n, depth, largest int) {
	if l := int32(max(largest, 1)); l != a.slot.Load() {
		a.slot.Store(l)
	}
	switch {
	case n == depth:
		a.depth.Store(int32(min(4*depth, maxMessages)))
	case 4*n < depth:
		a.depth.Store(int32(depth / 2))
	}
}
