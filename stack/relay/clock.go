package relay

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// clocked is the directions of a loop that are read by the clock.
//
// A stream that does not pause is read every clockTick, and the kernel is told that
// less than clockMark bytes are of no use to us (SO_RCVLOWAT in socket(7)). Then it
// wakes nobody when bytes arrive, and acknowledges them when they arrive, instead of
// when we read them (__tcp_ack_snd_check in Linux's net/ipv4/tcp_input.c). A sender whose
// congestion control measures the rate (BBR) then finds ten times as much, and sets no
// timer for each segment any more. What is in the socket is taken at every tick, so
// nothing waits for the mark to be reached.
type clocked struct {
	dirs []clockedDir
	due  time.Time // when they are read next
	// raised is how many directions of living flows have had the kernel make their
	// source's buffer as large as the mark demands. It keeps it so.
	raised int
}

// clockedDir is the direction from side i of a flow.
type clockedDir struct {
	flow *Flow
	i    int
}

// streamed notes that n more bytes of a direction were spliced.
func (f *Flow) streamed(i, n int) {
	l, d := f.loop, &f.dirs[i]
	if d.blocks != l.blocks {
		d.blocks, d.run = l.blocks, 0
	}
	d.run += n
	if d.run >= clockAfter && !d.clocked && f.sides[i].stream && f.failure == nil {
		f.clock(i)
	}
}

// answered notes that a message came the other way: a direction of which each part is
// asked for is no stream. What is asked for next would wait for the clock.
func (f *Flow) answered(i int) {
	d := &f.dirs[i]
	d.run = 0
	if d.clocked {
		f.unclock(i)
	}
}

// clock has a direction read by the clock, unless as many are or were as may.
func (f *Flow) clock(i int) {
	c, d := &f.loop.clocked, &f.dirs[i]
	if !d.raised && c.raised == maxClocked {
		return
	}
	if setInt(f.sides[i].fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, clockMark) != 0 {
		return
	}
	if !d.raised {
		d.raised = true
		c.raised++
	}
	d.clocked, d.idle, d.run = true, 0, 0
	c.dirs = append(c.dirs, clockedDir{f, i})
	f.loop.shared.clocked.Add(1)
}

// unclock has the kernel tell again whenever there is a byte, also if there is one now.
func (f *Flow) unclock(i int) {
	c, d := &f.loop.clocked, &f.dirs[i]
	d.clocked, d.run = false, 0
	k := slices.Index(c.dirs, clockedDir{f, i})
	c.dirs = slices.Delete(c.dirs, k, k+1)
	_ = setInt(f.sides[i].fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1)
}

// tick gives every direction that is read by the clock its turn when it is time.
// One that has brought little for a while goes back to events.
func (l *Loop) tick() {
	c := &l.clocked
	if len(c.dirs) == 0 {
		return
	}
	now := time.Now()
	if now.Before(c.due) {
		return
	}
	c.due = now.Add(clockTick)
	for k := len(c.dirs) - 1; k >= 0; k-- { // unclock removes this one
		f, i := c.dirs[k].flow, c.dirs[k].i
		d := &f.dirs[i]
		if d.idle++; d.run >= messageLen {
			d.idle = 0
		}
		d.run, d.bulk = 0, true
		f.sides[i].readable = true
		l.ready.push(f)
		if d.idle > clockIdle || d.eof {
			f.unclock(i)
		}
	}
}

// unclockAll takes a flow that ends out of the count. Its sockets, one of which may be
// used again, are as before, except for the size of their buffers.
func (f *Flow) unclockAll() {
	for i := range f.dirs {
		d := &f.dirs[i]
		if d.clocked {
			f.unclock(i)
		}
		if d.raised {
			f.loop.clocked.raised--
		}
	}
}
