package relay

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// world is a flow, its two peers and what must be true of them. What a peer sends is
// known from the place in its stream, so nothing has to be kept to compare with.
type world struct {
	t    *testing.T
	loop *Loop
	flow *Flow

	peers    [2]int // client and server
	sent     [2]int // bytes that a peer has written
	received [2]int // and read
	finished [2]bool
	ended    [2]bool // a peer has read the end of stream
	broken   [2]bool // a peer has got an error
	reset    bool    // a peer has reset
	counts   Splice
	done     int
	err      error
	buf      []byte
}

// streams is what each peer sends, over and over.
var streams = [2][]byte{random(11, 3<<20), random(12, 3<<20+4096)}

// pattern returns what a peer sends from byte n on, at most size bytes.
func pattern(side, n, size int) []byte {
	s := streams[side]
	n %= len(s)
	return s[n:min(n+size, len(s))]
}

func newWorld(t *testing.T, kind string, seed byte) *world {
	w := &world{t: t, loop: handLoop(t), buf: make([]byte, 1<<20)}
	client, a, b, server := socketPairs(t, kind)
	w.peers = [2]int{client, server}
	for i, fd := range []int{client, a, b, server} {
		if seed>>i&1 != 0 { // small buffers on some of the sockets
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 20<<10)
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 40<<10)
		}
	}
	w.counts = Splice{Done: func(err error) { w.done++; w.err = err }}
	w.flow = w.loop.Splice(a, b, w.counts)
	if seed&16 != 0 {
		w.flow.dirs[sideA].copies = true
	}
	if seed&32 != 0 {
		w.loop.msg, w.loop.held = nil, maxMessages
	}
	return w
}

// do is one operation of a schedule.
func (w *world) do(op, arg byte) {
	side := int(op & 1)
	size := 1 + int(arg)
	switch op >> 1 & 3 {
	case 1:
		size *= 300
	case 2:
		size *= 4000
	}
	switch op >> 3 % 8 {
	case 0, 1:
		w.send(side, size)
	case 2, 3:
		w.receive(side, size)
	case 4, 5:
		w.loop.step(0)
	case 6:
		if op>>6 == 0 && !w.finished[side] {
			w.finished[side] = true
			_ = unix.Shutdown(w.peers[side], unix.SHUT_WR)
		}
	case 7:
		if op>>6 == 3 && arg == 255 && !w.reset {
			w.reset = true
			setLinger(int32(w.peers[side]), true)
			_ = unix.Close(w.peers[side])
			w.peers[side] = -1
		}
	}
}

func (w *world) send(side, size int) {
	if w.finished[side] || w.peers[side] < 0 || w.broken[side] {
		return
	}
	n, errno := send(int32(w.peers[side]), pattern(side, w.sent[side], size), 0)
	switch {
	case errno == 0:
		w.sent[side] += n
	case errno != unix.EAGAIN:
		w.breaks(side)
	}
}

func (w *world) receive(side, size int) (progress bool) {
	if w.ended[side] || w.peers[side] < 0 || w.broken[side] {
		return false
	}
	n, errno := recv(int32(w.peers[side]), w.buf[:size], 0)
	switch {
	case errno == unix.EAGAIN:
		return false
	case errno != 0:
		w.breaks(side)
	case n == 0:
		w.ended[side] = true
		if !w.reset && (!w.finished[1-side] || w.received[side] != w.sent[1-side]) {
			w.t.Errorf("side %d: end of stream after %d of %d bytes, finished %v", side, w.received[side], w.sent[1-side], w.finished[1-side])
		}
	}
	for got := w.buf[:max(n, 0)]; len(got) > 0; {
		want := pattern(1-side, w.received[side], len(got))
		if !bytes.Equal(got[:len(want)], want) {
			w.t.Fatalf("side %d: wrong bytes after %d", side, w.received[side])
		}
		w.received[side] += len(want)
		got = got[len(want):]
	}
	return true
}

func (w *world) breaks(side int) {
	if !w.reset {
		w.t.Errorf("side %d broke without a reset", side)
	}
	w.broken[side] = true
}

// finish lets everything arrive, ends what is open and checks the outcome.
func (w *world) finish() {
	for side, fd := range w.peers {
		if fd >= 0 && !w.finished[side] {
			w.finished[side] = true
			_ = unix.Shutdown(fd, unix.SHUT_WR)
		}
	}
	over := func(side int) bool { return w.peers[side] < 0 || w.ended[side] || w.broken[side] }
	for end := time.Now().Add(stacktest.Patience); w.done == 0 || !over(0) || !over(1); {
		if time.Now().After(end) {
			w.t.Fatalf("stuck: %+v", *w)
		}
		w.loop.step(1)
		for side := range w.peers {
			for w.receive(side, len(w.buf)) {
			}
		}
	}
	if w.done != 1 || w.flow.loop.Flows() != 0 {
		w.t.Errorf("Done was called %d times, %d flows", w.done, w.flow.loop.Flows())
	}
	if !w.reset && (w.err != nil || w.received[0] != w.sent[1] || w.received[1] != w.sent[0]) {
		w.t.Errorf("ended with %v; sent %v, received %v", w.err, w.sent, w.received)
	}
	for _, fd := range w.peers {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if n := int(w.loop.shared.pipes.Load()); n != len(w.loop.pipes) || n > keepPipes {
		w.t.Errorf("%d pipes, %d of them free", n, len(w.loop.pipes))
	}
}

// play runs a schedule: a byte for the set-up, then two an operation.
func play(t *testing.T, kind string, schedule []byte) {
	if len(schedule) == 0 {
		return
	}
	w := newWorld(t, kind, schedule[0])
	for ops := schedule[1:]; len(ops) >= 2; ops = ops[2:] {
		w.do(ops[0], ops[1])
	}
	w.finish()
}

func FuzzSplice(f *testing.F) {
	f.Add(false, []byte{0, 0, 5, 32, 0, 16, 5})
	f.Add(true, []byte{63, 4, 255, 4, 255, 32, 0, 21, 255, 48, 0})
	f.Add(false, []byte{0, 4, 255, 32, 0, 0xf8, 255})
	f.Fuzz(func(t *testing.T, unixSockets bool, schedule []byte) {
		kind := "tcp"
		if unixSockets {
			kind = "unix"
		}
		play(t, kind, schedule[:min(len(schedule), 400)])
	})
}

func TestSpliceRandomSchedules(t *testing.T) {
	stacktest.NoLeaks(t)
	for seed := range uint64(150) {
		schedule := make([]byte, 1+2*(10+seed))
		_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(schedule)
		for i := 1; i < len(schedule); i += 2 { // ends are rare in most of them
			if op := schedule[i] >> 3 % 8; op >= 6 && seed%4 != 0 && i < len(schedule)/2 {
				schedule[i] &^= 0x20
			}
		}
		if seed%5 == 0 {
			schedule[len(schedule)-2], schedule[len(schedule)-1] = 0xf8|byte(seed%2), 255 // reset at the end
		}
		for kind := range pairs {
			play(t, kind, schedule)
			if t.Failed() {
				t.Fatalf("seed %d, %s", seed, kind)
			}
		}
	}
}
