package engineproc

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/seam"
)

// unixDialer has the supervisor connect to unix sockets; it is splice's.
type unixDialer struct {
	conn *seam.Conn

	mu      sync.Mutex // guards the fields below
	seq     uint64
	waiting map[uint64]chan<- dialled
	closed  bool
}

// dialled is an answer.
type dialled struct {
	file *os.File
	err  error
}

func newUnixDialer(conn *seam.Conn) *unixDialer {
	return &unixDialer{conn: conn, waiting: make(map[uint64]chan<- dialled)}
}

// DialUnix implements splice.UnixDialer. It ends with close at the latest.
func (d *unixDialer) DialUnix(rule int, path string, reverse bool) (fd int, err error) {
	answer := make(chan dialled, 1)
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return -1, os.ErrClosed
	}
	d.seq++
	seq := d.seq
	d.waiting[seq] = answer
	d.mu.Unlock()
	if err := d.conn.Send(&handoff.EngineDial{Seq: seq, Rule: rule, Path: path, Reverse: reverse}); err != nil {
		d.answer(seq, dialled{err: err})
	}
	a := <-answer
	if a.err != nil {
		return -1, a.err
	}
	defer a.file.Close()
	if fd, err = unix.FcntlInt(a.file.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)) // which Fd has undone
}

// dialed takes the supervisor's answer.
func (d *unixDialer) dialed(m *handoff.EngineDialed, files []*os.File) {
	a := dialled{err: errors.New(m.Reason)}
	switch {
	case len(files) == 1 && m.Errno == 0:
		a = dialled{file: files[0]}
		files = nil
	case unix.Errno(m.Errno) == unix.EAGAIN:
		a.err = unix.EAGAIN // a full backlog, which splice tries again
	}
	seam.CloseAll(files)
	d.answer(m.Seq, a)
}

// answer hands an answer to who waits for it.
func (d *unixDialer) answer(seq uint64, a dialled) {
	d.mu.Lock()
	w, ok := d.waiting[seq]
	delete(d.waiting, seq)
	d.mu.Unlock()
	switch {
	case ok:
		w <- a // has room for one
	case a.file != nil:
		_ = a.file.Close()
	}
}

// close answers everyone who waits: there is no supervisor any more.
func (d *unixDialer) close() {
	d.mu.Lock()
	d.closed = true
	waiting := d.waiting
	d.waiting = make(map[uint64]chan<- dialled)
	d.mu.Unlock()
	for _, w := range waiting {
		w <- dialled{err: os.ErrClosed}
	}
}
