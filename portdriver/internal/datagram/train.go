package datagram

// Bounds of what is collected before it is passed on.
const (
	// maxTrain is how many bytes and maxCars how many datagrams a train may have:
	// what one send takes (UDP_MAX_SEGMENTS before Linux 6.9; 65,535 less an IPv4
	// and a UDP header).
	maxTrain = 65507
	maxCars  = 64

	// maxCar is the largest datagram in bytes that is joined with others: larger
	// ones do not fit a segment of any usual network (9,000 bytes with jumbo
	// frames).
	maxCar = 8972

	// maxTrains is how many trains one batch has room for. It is how many flows may
	// take turns without breaking each other's trains, and bounds a batch at 0.5 MiB.
	maxTrains = 8
)

// Count returns how many datagrams a payload holds; see Way.Send.
func Count(payload []byte, segment int) int {
	if segment <= 0 || len(payload) <= segment {
		return 1
	}
	return (len(payload) + segment - 1) / segment
}

// train is one datagram, or several of one flow that are all of one size but for
// the last, which may be shorter.
type train struct {
	flow    *Flow
	payload []byte // its memory is kept for the next train
	size    int    // of the first datagram
	cars    int
	closed  bool // nothing can be added
}

// start makes a train of what one receive brought.
func (t *train) start(f *Flow, payload []byte, segment int) {
	t.flow, t.payload = f, append(t.payload[:0], payload...)
	t.size, t.cars = len(payload), Count(payload, segment)
	// What came as a train stays one. Empty datagrams have no size to cut by.
	t.closed = segment > 0 || len(payload) == 0 || len(payload) > maxCar
	if segment > 0 {
		t.size = segment
	}
}

// join adds a datagram if it is the next of the same kind.
func (t *train) join(payload []byte, segment int) bool {
	n := len(payload)
	if t.closed || segment > 0 || n == 0 || n > t.size || t.cars == maxCars || len(t.payload)+n > maxTrain {
		return false
	}
	t.payload = append(t.payload, payload...)
	t.cars++
	t.closed = n < t.size
	return true
}

// segment is the size to cut the payload by, 0 if it is one datagram.
func (t *train) segment() int {
	if t.cars == 1 {
		return 0
	}
	return t.size
}

// batch is a number of trains in the order in which they were begun. That order
// keeps the order of each flow's datagrams.
type batch struct {
	trains [maxTrains]train
	n      int
}

// add puts in what one receive brought for a flow. It reports false, and does
// nothing, when there is no room.
func (b *batch) add(f *Flow, payload []byte, segment int) bool {
	for i := b.n - 1; i >= 0; i-- {
		if t := &b.trains[i]; t.flow == f {
			if t.join(payload, segment) {
				return true
			}
			break // later than this one, or not at all
		}
	}
	if b.n == maxTrains {
		return false
	}
	b.trains[b.n].start(f, payload, segment)
	b.n++
	return true
}

// reset empties the batch.
func (b *batch) reset() {
	for i := range b.trains[:b.n] {
		b.trains[i].flow = nil
	}
	b.n = 0
}
