package rawfork

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/fdpass"
)

// StepError is the step of a script that failed in the child.
type StepError struct {
	What  string // the step's purpose
	Errno syscall.Errno
}

// Error says what was attempted and why it failed.
func (e *StepError) Error() string { return e.What + ": " + e.Errno.Error() }

// Unwrap gives the errno, for errors.Is.
func (e *StepError) Unwrap() error { return e.Errno }

// ErrChildDied is wrapped when the child ended before its script did: it was
// killed from outside.
var ErrChildDied = errors.New("the forked child was killed")

// Child is a forked child that interprets its script. It has to be ended by
// exactly one of Finish, Kill and Exec.
type Child struct {
	// PID is the child's process id. It cannot be reused before the child has
	// been waited for.
	PID int
	// PIDFD refers to the child (pidfd_open(2)).
	PIDFD *os.File

	script  *Script
	conn    *fdpass.Conn
	release chan struct{} // closed to end the thread that forked
	ended   chan struct{} // closed by that thread's goroutine
}

// forked is what the forking thread hands over.
type forked struct {
	pid   uintptr
	pidfd int32
	errno syscall.Errno
}

// Fork starts a child with these clone flags (clone(2); 0 is a plain fork). An
// error is the errno of clone or of making the control socket.
func (s *Script) Fork(flags uintptr) (*Child, error) {
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, err
	}
	control, err := duplicate(theirs)
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer control.Close()
	p := s.compile()
	p.flags = flags | unix.CLONE_PIDFD | uintptr(unix.SIGCHLD)
	p.parent, p.control = ours.Fd(), control.Fd()

	c := &Child{script: s, release: make(chan struct{}), ended: make(chan struct{})}
	result := make(chan forked)
	go c.forkingThread(p, result)
	f := <-result
	runtime.KeepAlive(s)
	if f.errno != 0 {
		ours.Close()
		c.releaseThread()
		return nil, f.errno
	}
	c.PID = int(f.pid)
	c.PIDFD = os.NewFile(uintptr(f.pidfd), "pidfd")
	if c.conn, err = fdpass.NewConn(ours); err != nil {
		return nil, Both(err, c.Kill())
	}
	return c, nil
}

// forkingThread forks and then keeps its thread, which nobody else can use, alive
// until the child is done with; see the package comment.
func (c *Child) forkingThread(p *program, result chan<- forked) {
	defer close(c.ended)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.ForkLock.Lock()
	pid, errno := clone(p)
	syscall.ForkLock.Unlock()
	result <- forked{pid: pid, pidfd: p.pidfd, errno: errno}
	<-c.release
}

func (c *Child) releaseThread() {
	close(c.release)
	<-c.ended
}

// compile resolves the labels and copies the steps into what the child reads.
func (s *Script) compile() *program {
	p := &program{ops: make([]op, len(s.steps)), pidfd: -1}
	at := func(l Label) int {
		if l == 0 {
			return -1
		}
		return s.labels[l-1]
	}
	for i, st := range s.steps {
		o := &p.ops[i]
		*o = op{
			nr: st.Nr, store: st.Store, poke: st.Poke, least: st.Least,
			ignore: st.Ignore, failed: at(st.Failed), nonZero: at(st.NonZero),
		}
		for j, a := range st.Args {
			o.value[j], o.reg[j] = a.value, a.reg
		}
	}
	return p
}

// GoOn sends the byte that a Wait step waits for. ErrChildDied if there is nobody
// left to take it.
func (c *Child) GoOn() error {
	err := c.conn.Send([]byte{0})
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return ErrChildDied
	}
	return err
}

// SetDeadline bounds Result.
func (c *Child) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// Result waits until the script has ended or the child has executed another
// program, and returns the descriptors that it sent, in order; they are the
// caller's, on an error too. A failed step is a *StepError. The context's end is
// the context's error; the child still has to be ended. One that is killed in its
// last steps looks like one that executed its program: Finish and Process.Wait
// tell.
func (c *Child) Result(ctx context.Context) ([]*os.File, error) {
	past := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(past) })
	defer stop()
	var files []*os.File
	var failed error
	buf := make([]byte, 8)
	for {
		n, got, err := c.conn.Recv(buf)
		files = append(files, got...)
		switch {
		case errors.Is(err, io.EOF):
			return files, failed
		case errors.Is(err, unix.ECONNRESET):
			return files, ErrChildDied // with the byte of GoOn unread
		case err != nil && ctx.Err() != nil:
			return files, ctx.Err()
		case err != nil:
			return files, err
		case n == len(buf) && failed == nil:
			// Where the script forked again, the other branch may still send.
			failed = c.stepError(buf)
		}
	}
}

func (c *Child) stepError(report []byte) error {
	index := binary.NativeEndian.Uint32(report)
	errno := syscall.Errno(binary.NativeEndian.Uint32(report[4:]))
	what := "run the forked child"
	if int(index) < len(c.script.steps) {
		what = c.script.steps[index].What
	}
	return &StepError{What: what, Errno: errno}
}

// Finish waits for the end of a child whose script does not execute anything, and
// frees what belongs to it. A child that did not end by itself is ErrChildDied.
func (c *Child) Finish() error {
	defer c.free()
	status, err := reap(c.PID)
	if err != nil {
		return err
	}
	if status.Signaled() {
		return fmt.Errorf("%w by signal %d (%v)", ErrChildDied, int(status.Signal()), status.Signal())
	}
	return nil
}

// Kill ends the child at once and frees what belongs to it.
func (c *Child) Kill() error {
	defer c.free()
	if err := unix.Kill(c.PID, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill forked child %d: %w", c.PID, err)
	}
	_, err := reap(c.PID)
	return err
}

func (c *Child) free() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.PIDFD.Close()
	c.releaseThread()
}

// reap waits for the end of one child.
func reap(pid int) (unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for child %d: %w", pid, err)
		}
		return status, nil
	}
}

// CloseAll closes every file that is not nil.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Both is one error of up to two, on one line.
func Both(err, other error) error {
	switch {
	case other == nil:
		return err
	case err == nil:
		return other
	}
	return fmt.Errorf("%w; %w", err, other)
}
