package relay

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// ticking is a flow stepped by hand whose way from the client is read by the clock.
type ticking struct {
	*kept
	t *testing.T
}

func newTicking(t *testing.T) *ticking {
	k := &ticking{newKept(t), t}
	t.Cleanup(func() {
		for _, fd := range []int{k.client, k.server} {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
	})
	k.stream()
	if len(k.clocked.dirs) != 1 || k.mark() <= 1 {
		t.Fatalf("%d directions by the clock, low-water mark %d", len(k.clocked.dirs), k.mark())
	}
	return k
}

// stream sends what makes a direction one that is read by the clock, and some more.
func (k *ticking) stream() {
	k.t.Helper()
	data := random(1, 3*messageLen) // what a fresh socket takes at once; two thirds are spliced
	for range clockAfter/(2*messageLen) + 8 {
		k.pass(data)
	}
}

// pass sends data, which must come out.
func (k *ticking) pass(data []byte) {
	k.t.Helper()
	if n, err := unix.Write(k.client, data); n != len(data) || err != nil {
		k.t.Fatalf("%d bytes, %v", n, err)
	}
	if got := collect(k.t, k.Loop, k.server, len(data)); !bytes.Equal(got, data) {
		k.t.Fatalf("%d bytes came out of %d, or others", len(got), len(data))
	}
}

// mark is the low-water mark of the flow's socket a.
func (k *ticking) mark() int { return lowWater(k.t, k.a) }

func lowWater(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rest steps until nothing is read by the clock any more.
func (k *ticking) rest() {
	k.t.Helper()
	stacktest.Eventually(k.t, "the clock to be left", func() bool {
		k.step(1)
		return len(k.clocked.dirs) == 0
	})
	if k.mark() != 1 || k.flow.dirs[sideA].clocked {
		k.t.Errorf("low-water mark %d", k.mark())
	}
}

// What is below the mark does not wait for more, and a direction that rests is served
// by events again; another stream brings the clock back.
func TestClockTail(t *testing.T) {
	stacktest.NoLeaks(t)
	k := newTicking(t)
	k.pass([]byte("the last of it"))
	k.rest()
	k.step(0)
	if _, err := unix.Write(k.client, []byte{1}); err != nil {
		t.Fatal(err)
	}
	k.step(int(stacktest.Patience / time.Millisecond)) // an event comes
	if got := collect(t, k.Loop, k.server, 1); len(got) != 1 {
		t.Errorf("%d bytes, want 1", len(got))
	}
	k.stream()
	if !k.flow.dirs[sideA].clocked || k.clocked.raised != 1 {
		t.Errorf("not by the clock again, or counted %d times", k.clocked.raised)
	}
}

// A message the other way ends the clock at once: somebody may wait for an answer.
func TestClockAnswered(t *testing.T) {
	stacktest.NoLeaks(t)
	k := newTicking(t)
	if _, err := unix.Write(k.server, []byte("and now?")); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, k.Loop, k.client, 8); string(got) != "and now?" {
		t.Errorf("%q came out", got)
	}
	if len(k.clocked.dirs) != 0 || k.mark() != 1 {
		t.Errorf("%d directions by the clock, low-water mark %d", len(k.clocked.dirs), k.mark())
	}
	k.pass(random(2, 3*messageLen))
}

// The end of the stream is passed on while its direction is read by the clock, and the
// other direction goes on.
func TestClockEnd(t *testing.T) {
	stacktest.NoLeaks(t)
	k := newTicking(t)
	want := random(3, 100)
	if _, err := unix.Write(k.client, want); err != nil {
		t.Fatal(err)
	}
	_ = unix.Shutdown(k.client, unix.SHUT_WR)
	if got := collect(t, k.Loop, k.server, len(want)+1); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d and the end of stream", len(got), len(want))
	}
	k.rest()
	if _, err := unix.Write(k.server, want); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, k.Loop, k.client, len(want)); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	_ = unix.Shutdown(k.server, unix.SHUT_WR)
	k.finish(t)
	if k.err != nil || k.clocked.raised != 0 {
		t.Errorf("%v, %d buffers counted", k.err, k.clocked.raised)
	}
	if k.fd >= 0 {
		_ = unix.Close(k.fd)
	}
}

// Urgent bytes stay in their place.
func TestClockUrgent(t *testing.T) {
	stacktest.NoLeaks(t)
	k := newTicking(t)
	first, rest := random(4, messageLen), random(5, 3*messageLen)
	want := append(append(bytes.Clone(first), '!'), rest...)
	_, err1 := unix.Write(k.client, first)
	err2 := unix.Sendto(k.client, []byte("!"), unix.MSG_OOB, nil)
	_, err3 := unix.Write(k.client, rest)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	if got := collect(t, k.Loop, k.server, len(want)); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

// A reset ends the flow, and nothing of it is left with the clock.
func TestClockReset(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, other := range []bool{false, true} {
		k := newTicking(t)
		end := &k.client
		if other {
			end = &k.server
		}
		setLinger(int32(*end), true)
		_ = unix.Close(*end)
		*end = -1
		k.finish(t)
		if k.err == nil {
			t.Error("ended in order")
		}
		for range 3 {
			time.Sleep(clockTick)
			k.step(0)
		}
		if len(k.clocked.dirs) != 0 || k.clocked.raised != 0 {
			t.Errorf("%d directions, %d buffers left", len(k.clocked.dirs), k.clocked.raised)
		}
	}
}

// A receiver that stops has its direction leave the clock; no byte is lost when it
// goes on.
func TestClockStuck(t *testing.T) {
	stacktest.NoLeaks(t)
	k := newTicking(t)
	sent := 0
	data := random(6, 1<<20)
	for full := 0; full < 100; {
		n, errno := send(int32(k.client), data[sent%len(data):], 0)
		if errno == 0 {
			sent, full = sent+n, 0
			continue
		}
		full++
		k.step(1)
	}
	k.rest()
	got := collect(t, k.Loop, k.server, sent)
	for i := 0; i < len(got); i += len(data) {
		if piece := got[i:min(i+len(data), len(got))]; !bytes.Equal(piece, data[:len(piece)]) {
			t.Fatalf("other bytes behind %d", i)
		}
	}
}

// No more buffers are made large than may be, and a socket that is kept has its mark
// back.
func TestClockBounds(t *testing.T) {
	stacktest.NoLeaks(t)
	k := &ticking{newKept(t), t}
	k.clocked.raised = maxClocked
	k.stream()
	if len(k.clocked.dirs) != 0 || k.mark() > 1 { // 0 is as good as 1, and what a fresh socket says
		t.Errorf("%d directions by the clock, low-water mark %d", len(k.clocked.dirs), k.mark())
	}
	k.clocked.raised = 0
	k.stream()
	k.client, k.server = k.server, k.client // so that b has one too
	k.stream()
	if k.clocked.raised != 2 || lowWater(t, k.b) <= 1 { // a may rest by now
		t.Fatalf("%d buffers counted, low-water mark of b %d", k.clocked.raised, lowWater(t, k.b))
	}
	_, _ = unix.Shutdown(k.client, unix.SHUT_WR), unix.Shutdown(k.server, unix.SHUT_WR)
	k.finish(t)
	if k.fd < 0 {
		t.Fatal("not kept")
	}
	if n := lowWater(t, k.fd); n > 1 || k.clocked.raised != 0 {
		t.Errorf("low-water mark of a kept socket %d, %d buffers counted", n, k.clocked.raised)
	}
	for _, fd := range []int{k.fd, k.client, k.server} {
		_ = unix.Close(fd)
	}
}

// A running loop blocks again once its streams rest, with the flows still there.
func TestClockRests(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 1)
	l := ls.All()[0]
	j, a, b := prepared(t, l, "tcp")
	j.splice(t, a, b, nil)
	data := random(7, 16<<20)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := j.client.Write(data); err != nil {
			t.Error(err)
		}
	})
	got := make([]byte, len(data))
	if _, err := io.ReadFull(j.server, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes came out: %v", err)
	}
	wg.Wait()
	if ls.Stats().Clocked == 0 {
		t.Error("never read by the clock")
	}
	var before, after uint64
	onLoop(t, l, func() { before = l.blocks })
	stacktest.Eventually(t, "the loop to block", func() bool {
		onLoop(t, l, func() { after = l.blocks })
		return after > before
	})
	j.lives(t)
	_, _ = j.client.CloseWrite(), j.server.CloseWrite()
	if err := j.end(t); err != nil {
		t.Error(err)
	}
}
