package relay

import (
	"io"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// messageLen is the size of a read that needs no question before it. A message
// of a dialogue fits; a read that fills it is taken for bulk data.
const messageLen = 16 << 10

var messages = sync.Pool{New: func() any { return new([messageLen]byte) }}

// hostReader reads a non-blocking socket through Go's poller without an
// allocation per call. It has one user.
//
// Small messages are read at once into a pooled buffer, which is held only while
// there is something in it: one system call and one short copy. Bulk data is
// asked for its length first and then read where it belongs.
type hostReader struct {
	raw  syscall.RawConn
	poll func(fd uintptr) bool
	take func(fd uintptr) bool

	bulk  bool
	burst bool              // there was a full read since the socket had nothing
	n     int               // out: bytes available
	msg   *[messageLen]byte // the bytes, if they were read already
	at    int               // how many of them are given out
	buf   []byte            // in: what take fills
	err   error             // out
}

func newHostReader(raw syscall.RawConn) *hostReader {
	r := &hostReader{raw: raw}
	r.poll, r.take = r.tryPoll, r.tryTake
	return r
}

// wait waits until the socket holds bytes and returns how many, or io.EOF, or
// the socket's error. That many must then be taken with readFull.
func (r *hostReader) wait() (int, error) {
	if err := r.raw.Read(r.poll); err != nil {
		return 0, err
	}
	return r.n, r.err
}

func (r *hostReader) tryPoll(fd uintptr) bool {
	if r.bulk {
		// SIOCINQ is FIONREAD (tcp(7)). It never counts the end of stream or
		// an error, which only a read shows.
		if r.n = inQueue(fd); r.n >= messageLen {
			r.err = nil
			return true
		}
		r.bulk = false
	}
	msg := messages.Get().(*[messageLen]byte)
	n, err := read(fd, msg[:])
	if n > 0 {
		r.n, r.err, r.msg, r.at, r.bulk = n, nil, msg, 0, n == messageLen
		if r.burst = r.burst || r.bulk; !r.bulk {
			r.paused(fd)
		}
		return true
	}
	messages.Put(msg)
	switch {
	case err == unix.EAGAIN:
		r.paused(fd)
		return false
	case err != 0:
		r.err = err
	default:
		r.err = io.EOF
	}
	return true
}

// paused acknowledges the end of a burst, see quickAck.
func (r *hostReader) paused(fd uintptr) {
	if r.burst {
		quickAck(int32(fd))
	}
	r.burst = false
}

// readFull fills b with bytes that wait promised.
func (r *hostReader) readFull(b []byte) error {
	if r.msg != nil {
		r.at += copy(b, r.msg[r.at:r.n])
		if r.at == r.n {
			r.release()
		}
		return nil
	}
	r.buf, r.err = b, nil
	if err := r.raw.Read(r.take); err != nil {
		return err
	}
	return r.err
}

// wasReset tells a reset from an end of stream after a read returned nothing: the
// kernel reports the error of a reset once only, and the writing side may have
// been the one to get it, and may have closed the socket since. It holds as well
// for a connection that ended in order in both directions.
func wasReset(raw syscall.RawConn) bool {
	const closed = 7 // TCP_CLOSE of netinet/tcp.h
	reset := false
	err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		reset = err == nil && info.State == closed
	})
	return reset || err != nil
}

// release gives the message buffer back; also when its bytes found no taker.
func (r *hostReader) release() {
	if r.msg != nil {
		messages.Put(r.msg)
		r.msg = nil
	}
}

func (r *hostReader) tryTake(fd uintptr) bool {
	for len(r.buf) > 0 {
		n, err := read(fd, r.buf)
		switch {
		case err == unix.EAGAIN:
			return false
		case err != 0:
			r.err = err
			return true
		case n == 0:
			r.err = io.ErrUnexpectedEOF
			return true
		default:
			r.buf = r.buf[n:]
		}
	}
	return true
}

// read is read(2) for a non-blocking socket, again after EINTR. It does not tell
// the scheduler, like all system calls on the data path: they are over before
// another thread could make use of it, and its monitor would watch us all the
// time, at a tenth of a processor.
func read(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// inQueue returns how many bytes a socket holds, 0 also when it cannot tell.
func inQueue(fd uintptr) int {
	var n int32
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, fd, unix.SIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return int(n)
}

// hostWriter writes to a non-blocking socket. It has one user.
type hostWriter struct {
	raw  syscall.RawConn
	poll func(fd uintptr) bool

	iov []unix.Iovec
	n   int
	err error
}

func newHostWriter(raw syscall.RawConn) *hostWriter {
	w := &hostWriter{raw: raw, iov: make([]unix.Iovec, 0, maxPieces)}
	w.poll = w.tryWrite
	return w
}

// write waits until the socket takes bytes and returns how many it took.
func (w *hostWriter) write(bufs [][]byte) (int, error) {
	w.iov = w.iov[:0]
	for _, b := range bufs {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		w.iov = append(w.iov, v)
	}
	err := w.raw.Write(w.poll)
	clear(w.iov)
	if err != nil {
		return 0, err
	}
	return w.n, w.err
}

func (w *hostWriter) tryWrite(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(len(w.iov)))
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		case 0:
			w.n, w.err = int(n), nil
			return true
		default:
			w.n, w.err = 0, errno
			return true
		}
	}
}
