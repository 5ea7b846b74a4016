package rawfork

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Process is a child of ours that executed a program. Its methods may be called
// from several goroutines. It has to be closed.
type Process struct {
	// PID is its process id as we see it. It is not reused before Wait returned.
	PID int
	// PIDFD refers to it (pidfd_open(2)) and is readable from its end on.
	PIDFD *os.File

	poll   *os.File // PIDFD's duplicate on Go's poller
	thread *Child   // whose thread the kernel ties the parent-death signal to

	mu     sync.Mutex // guards the fields below
	closed bool
	reaped bool
	status unix.WaitStatus
	err    error
}

// Exec turns a child whose Result was no error into the Process that it became.
func (c *Child) Exec() (*Process, error) {
	c.conn.Close()
	return newProcess(c, c.PID, c.PIDFD)
}

// ExecSibling is Exec for a script that forked once more with CLONE_PARENT, so
// that the program is our child, and sent its pidfd. The child itself is waited
// for; the errors end the program as well.
func (c *Child) ExecSibling(pidfd *os.File) (*Process, error) {
	c.conn.Close()
	c.PIDFD.Close()
	_, err := reap(c.PID)
	pid, perr := pidOf(pidfd)
	if err = Both(err, perr); err != nil {
		KillPIDFD(pidfd)
		pidfd.Close()
		c.releaseThread()
		return nil, err
	}
	return newProcess(c, pid, pidfd)
}

// KillPIDFD ends a child of ours that only its pidfd is known of, and waits for it.
func KillPIDFD(pidfd *os.File) {
	fd := int(pidfd.Fd())
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // ESRCH: it ended by itself
	for unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED, nil) == unix.EINTR {
	}
}

// pidOf reads a pidfd's process id from its fdinfo (pidfd_open(2)).
func pidOf(pidfd *os.File) (int, error) {
	path := fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd())
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("ask for a process id: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || pid <= 0 {
				return 0, fmt.Errorf("ask for a process id: %s says %q: %w", path, v, os.ErrProcessDone)
			}
			return pid, nil
		}
	}
	return 0, fmt.Errorf("ask for a process id: %s has no Pid line", path)
}

func newProcess(c *Child, pid int, pidfd *os.File) (*Process, error) {
	p := &Process{PID: pid, PIDFD: pidfd, thread: c}
	fd, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true) // what makes os.NewFile put it on the poller
		p.poll = os.NewFile(uintptr(fd), "pidfd")
	}
	if err != nil {
		KillPIDFD(pidfd)
		pidfd.Close()
		c.releaseThread()
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return p, nil
}

// Wait waits for the process's end and returns how it ended. It may be called
// more than once. After Close it is os.ErrClosed unless the end was known.
func (p *Process) Wait() (unix.WaitStatus, error) {
	rc, err := p.poll.SyscallConn()
	if err == nil {
		err = rc.Read(func(uintptr) bool { return p.tryReap() })
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.reaped:
		err = p.err
	case p.closed:
		err = os.ErrClosed
	}
	if err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	return p.status, nil
}

// tryReap takes the exit status if there is one; true when it is known.
func (p *Process) tryReap() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return true
	}
	pid, err := unix.Wait4(p.PID, &p.status, unix.WNOHANG, nil)
	for err == unix.EINTR {
		pid, err = unix.Wait4(p.PID, &p.status, unix.WNOHANG, nil)
	}
	if err == nil && pid == 0 {
		return false
	}
	p.reaped, p.err = true, err
	p.thread.releaseThread()
	return true
}

// Signal sends a signal through the pidfd, so never to another process that got
// the same number. os.ErrProcessDone when it has ended.
func (p *Process) Signal(sig unix.Signal) error {
	rc, err := p.poll.SyscallConn()
	var serr error
	if err == nil {
		err = rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	}
	if err == nil {
		err = serr
	}
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("send signal %d to process %d: %w", int(sig), p.PID, err)
	}
	return nil
}

// Kill sends SIGKILL.
func (p *Process) Kill() error { return p.Signal(unix.SIGKILL) }

// Close ends the process if it still runs, waits for it and frees the
// descriptors. A second Close does nothing.
func (p *Process) Close() error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	if again {
		return nil
	}
	err := p.Kill()
	if err == nil || errors.Is(err, os.ErrProcessDone) {
		_, err = p.Wait()
	}
	p.poll.Close()
	p.PIDFD.Close()
	return err
}
