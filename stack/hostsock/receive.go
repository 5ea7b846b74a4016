package hostsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer takes the largest datagram and the largest super-segment.
	receiveBuffer = 1 << 16

	// maxMessages is how many messages one recvmmsg takes. What it brings is delivered in one
	// go, to a receive buffer that may hold no more than 90. 64 of them bring 7 % more at full
	// speed, and twice the loss at two thirds of that.
	maxMessages = 16

	// fewMessages is what a quiet socket is asked for: with room for two, getting
	// one says that there is no other, without a further call.
	fewMessages = 2

	// controlWords is the room for the control messages of one receive, in words.
	// A segment size, a local address, a hop limit and an original destination
	// take 136 bytes over IPv6, an error with its offender 64.
	controlWords = 24
)

// reader has the memory that receiving needs.
//
// Messages are received into slots as large as those of the call before, one
// behind the other. When a flow sends datagrams of one size they lie in one piece
// afterwards, as if the kernel had batched them, and can be sent on like that.
// What is larger than its slot runs over into a spill of its own.
type reader struct {
	slots []byte
	spill []byte
	slot  int // size of a slot in bytes
	depth int // number of slots
	used  int // how many the last receive filled

	hdrs  []mmsghdr
	iovs  [maxMessages][2]unix.Iovec
	names [maxMessages]name
	oob   [maxMessages][controlWords]uint64 // aligned for struct cmsghdr

	courtesy courtesy
}

// arrange prepares depth slots of so many bytes each, or one that takes everything.
func (r *reader) arrange(depth, slot int) {
	if depth == r.depth && slot == r.slot {
		r.renew(r.used)
		return
	}
	if r.hdrs == nil {
		r.hdrs = make([]mmsghdr, maxMessages)
		r.slots = make([]byte, receiveBuffer)
	}
	if depth > 1 && len(r.spill) < depth*receiveBuffer {
		r.spill = make([]byte, depth*receiveBuffer) // only what is written to costs memory
	}
	r.depth, r.slot = depth, slot
	for i := range depth {
		h := &r.hdrs[i].hdr
		setIovec(&r.iovs[i][0], r.slots[i*slot:(i+1)*slot])
		h.SetIovlen(1)
		if slot < receiveBuffer {
			setIovec(&r.iovs[i][1], r.spilled(i)[slot:])
			h.SetIovlen(2)
		}
		h.Iov = &r.iovs[i][0]
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Control = (*byte)(unsafe.Pointer(&r.oob[i]))
	}
	r.renew(depth)
}

// renew gives the first n headers back what a receive has changed.
func (r *reader) renew(n int) {
	for i := range n {
		h := &r.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlWords * 8)
	}
	r.used = 0
}

func (r *reader) spilled(i int) []byte { return r.spill[i*receiveBuffer : (i+1)*receiveBuffer] }

// receive takes what waits, at most as much as one call brings, and returns how
// many messages that is; more says that there may be others. An errno other than 0
// and EAGAIN may belong to a packet sent earlier and says nothing about what comes.
func (r *reader) receive(s *Socket) (more bool, e unix.Errno) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return false, unix.EAGAIN
	}
	depth, slot := s.appetite.next()
	if e = r.fill(s, depth, slot); e != 0 {
		return false, e
	}
	largest := 0
	for i := range r.used {
		largest = max(largest, int(r.hdrs[i].len))
	}
	s.appetite.got(r.used, depth, largest)
	return r.used == depth, 0
}

// one is receive for a single message, whatever s is used to.
func (r *reader) one(s *Socket) unix.Errno {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return unix.EAGAIN
	}
	return r.fill(s, 1, receiveBuffer)
}

// fill takes up to depth messages of s, whose lock is held.
func (r *reader) fill(s *Socket, depth, slot int) (e unix.Errno) {
	r.arrange(depth, slot)
	if r.used, e = recvmmsg(s.fd, r.hdrs[:depth]); e != 0 {
		r.used = 0
	}
	return e
}

// message returns what came in slot i, in one piece.
func (r *reader) message(i int) Message {
	n := int(r.hdrs[i].len)
	at := r.slots[i*r.slot : (i+1)*r.slot]
	m := Message{From: getName(&r.names[i])}
	if n <= r.slot {
		m.Payload = at[:n]
	} else {
		over := r.spilled(i)
		copy(over, at)
		m.Payload = over[:n]
	}
	if r.hdrs[i].hdr.Controllen > 0 {
		m.readControl(r.control(i))
	}
	if m.Segment >= n {
		m.Segment = 0
	}
	return m
}

// control returns the control messages that came in slot i.
func (r *reader) control(i int) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&r.oob[i])), controlWords*8)[:r.hdrs[i].hdr.Controllen]
}

// deliver hands the messages of the last receive over, those of one size that
// follow each other as one if the socket's handler gets trains.
func (r *reader) deliver(e entry) {
	for i := 0; i < r.used; {
		m := r.message(i)
		i++
		if e.socket.trains && m.Segment == 0 && len(m.Payload) == r.slot {
			i = r.couple(&m, i)
		}
		e.handler.Receive(m)
	}
}

// couple appends to m, which fills its slot, the datagrams from slot i on that may
// follow in a train: of the same size, but for the last. It returns the next slot.
func (r *reader) couple(m *Message, i int) int {
	start := (i - 1) * r.slot
	for ; i < r.used; i++ {
		n := int(r.hdrs[i].len)
		if n == 0 || n > r.slot || i*r.slot+n-start > MaxPayload {
			break
		}
		next := r.message(i)
		if next.Segment != 0 || !m.likewise(next) {
			break
		}
		m.Segment = r.slot
		m.Payload = r.slots[start : i*r.slot+n]
		if n < r.slot {
			return i + 1
		}
	}
	return i
}

// report receives the next entry of the error queue.
func (r *reader) report(s *Socket) (Report, unix.Errno) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return Report{}, unix.EAGAIN
	}
	r.arrange(1, receiveBuffer)
	r.names[0] = name{}
	n, e := recvmsg(s.fd, &r.hdrs[0].hdr, unix.MSG_ERRQUEUE)
	r.used = 1
	if e != 0 {
		return Report{}, e
	}
	rep := parseReport(r.control(0))
	rep.Target, rep.Payload = getName(&r.names[0]), r.slots[:n]
	return rep, 0
}
