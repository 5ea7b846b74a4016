package relay

import (
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// direction is one way through a flow. Bytes that were taken from its source and not
// yet by its destination are in pending or in a pipe, never in both.
type direction struct {
	count   *atomic.Uint64
	pending []byte
	msg     *message // the memory of pending; nil when that is a Prefix
	pipe    *pipe    // has bytes in it
	bulk    bool     // the last read was full: splice
	burst   bool     // one was since the direction had nothing to read
	copies  bool     // splice(2) refused these sockets
	clocked bool     // the source is read by the clock
	raised  bool     // the source's buffer was made large for that
	idle    int      // how many ticks have brought little
	run     int      // bytes spliced since the last tick, or since the loop blocked
	blocks  uint64   // Loop.blocks at that time
	eof     bool     // the source has no more
	done    bool     // and the destination knows
}

// pump moves bytes from side i to the other one until one of them has no more to
// give or to take, or this turn's share is used up. It reports whether that was the
// reason.
func (f *Flow) pump(i int) (again bool) {
	d, src, dst := &f.dirs[i], &f.sides[i], &f.sides[1-i]
	for left := turnBudget; left > 0; {
		n := 0
		switch {
		case len(d.pending) > 0:
			n = f.flush(i)
		case d.pipe != nil:
			n = f.drain(i)
		case d.eof:
			f.finish(i)
			return false
		case !src.readable || !dst.writable:
			return false
		case d.bulk:
			n = f.moveBulk(i, left)
		default:
			n = f.moveMessage(i)
		}
		if n < 0 {
			return false
		}
		left -= n + callCost
	}
	return true
}

// The steps of pump return how many bytes were taken by the destination, 0 also when
// something else is to be done next, and stop when nothing more can be done now.
const stop = -1

// flush sends what is pending.
func (f *Flow) flush(i int) int {
	d, dst := &f.dirs[i], &f.sides[1-i]
	if !dst.writable {
		return stop
	}
	n, errno := send(dst.fd, d.pending, 0)
	if errno != 0 {
		return f.unsent(i, "send", errno)
	}
	if d.msg != nil {
		d.add(n)
	}
	if n < len(d.pending) {
		d.pending = d.pending[n:]
		return n
	}
	f.loop.releaseMessage(d)
	return n
}

// unsent handles a destination that took nothing.
func (f *Flow) unsent(i int, call string, errno syscall.Errno) int {
	if errno == unix.EAGAIN {
		f.awaitRoom(&f.sides[1-i])
		return stop
	}
	f.fail(1-i, call, errno)
	return stop
}

// finish passes an end of stream on. After a failure a reset follows, so that none
// may.
func (f *Flow) finish(i int) {
	if f.failure != nil {
		return
	}
	dst := &f.sides[1-i]
	if !f.dirs[1-i].done { // else both sockets are closed now, which says the same
		if errno := shutdownWrite(dst.fd); errno != 0 {
			f.fail(1-i, "shutdown", errno)
			return
		}
		setLinger(dst.fd, false) // the kernel delivers the rest, also without us
		dst.shut = true
	}
	f.dirs[i].done = true
}

// moveMessage reads once and sends that. Only such a read decides that there is
// nothing to be read, or that the stream has ended: splice(2) says so too when it has
// run into urgent data.
func (f *Flow) moveMessage(i int) int {
	l, d, src, dst := f.loop, &f.dirs[i], &f.sides[i], &f.sides[1-i]
	if l.msg == nil && !l.takeMessage() {
		return f.movePeeked(i)
	}
	got, errno := recv(src.fd, l.msg[:], 0)
	if errno != 0 || got == 0 {
		return f.unread(i, got, errno)
	}
	d.took(got)
	if !d.bulk {
		f.answered(1 - i)
		f.paused(i)
	}
	if !d.bulk && src.stream && !src.urgent {
		// The queue was empty. More makes a new event, and after the end of the
		// stream there is none.
		src.readable, d.eof = src.ended, src.ended
	}
	flags := 0
	if d.eof && f.failure == nil {
		flags = unix.MSG_MORE // the end of stream, which is next, goes in the same segment
	}
	n, errno := send(dst.fd, l.msg[:got], flags)
	if errno != 0 {
		n = 0
	}
	d.add(n)
	l.shared.copied.Add(uint64(n))
	if n < got {
		d.pending, d.msg = l.msg[n:got], l.msg
		l.msg = nil
		l.held++
	}
	if errno != 0 {
		return f.unsent(i, "send", errno)
	}
	return n
}

// unread handles a source that gave nothing.
func (f *Flow) unread(i, n int, errno syscall.Errno) int {
	switch errno {
	case unix.EAGAIN:
		f.sides[i].readable = false
		f.dirs[i].bulk = false
		f.paused(i)
		return stop
	case 0:
		f.dirs[i].eof = true
		return 0
	}
	f.fail(i, "recv", errno)
	return stop
}

// paused notes that there is nothing to be read for now.
func (f *Flow) paused(i int) {
	d := &f.dirs[i]
	if d.burst && f.sides[i].stream {
		quickAck(f.sides[i].fd)
	}
	d.burst = false
}

// movePeeked sends what can be read and then takes from the source what was sent:
// nothing has to be kept when the destination takes less.
func (f *Flow) movePeeked(i int) int {
	l, d, src, dst := f.loop, &f.dirs[i], &f.sides[i], &f.sides[1-i]
	if l.big == nil {
		l.big = make([]byte, peekLen)
	}
	got, errno := recv(src.fd, l.big, unix.MSG_PEEK)
	if errno != 0 || got == 0 {
		return f.unread(i, got, errno)
	}
	n, errno := send(dst.fd, l.big[:got], 0)
	if errno != 0 {
		return f.unsent(i, "send", errno)
	}
	d.took(got)
	d.add(n)
	l.shared.copied.Add(uint64(n))
	for rest := n; rest > 0; {
		took, errno := recv(src.fd, l.big[:rest], unix.MSG_TRUNC)
		if errno != 0 || took == 0 { // somebody else reads this socket
			f.Abort(os.NewSyscallError("recv", unix.EIO))
			return stop
		}
		rest -= took
	}
	return n
}

// took notes how large a read was. Small pieces fill a pipe's slots: those are better
// copied together.
func (d *direction) took(n int) {
	d.bulk = n >= messageLen
	d.burst = d.burst || d.bulk
}

// add counts bytes that the destination took.
func (d *direction) add(n int) {
	if d.count != nil && n > 0 {
		d.count.Add(uint64(n))
	}
}
