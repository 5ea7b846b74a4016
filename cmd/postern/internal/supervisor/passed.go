package supervisor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/activation"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/agent"
	"github.com/postern-net/postern/userns/seam"
)

// Passed are descriptors that go through to the command, which finds them as
// sd_listen_fds(3) says: from 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES.
type Passed struct {
	// Files are the descriptors, agent.MaxPassed at most. Run takes them over: they
	// are closed when the command has them, so that it alone decides how long a
	// socket listens.
	Files []*os.File
	// Names is LISTEN_FDNAMES, "" for none.
	Names string
}

// TakePassed takes over what was passed to the process pid, the caller's own, whatever
// kind of descriptor it is. getenv is os.Getenv. There is nothing if LISTEN_PID is
// another process's. It must be called once, before descriptors are made
// close-on-exec.
func TakePassed(getenv func(string) string, pid int) (Passed, error) {
	n, err := activation.Count(getenv, pid, agent.MaxPassed)
	if err != nil {
		return Passed{}, fmt.Errorf("pass descriptors on: %w", err)
	}
	if n == 0 {
		return Passed{}, nil
	}
	p := Passed{Names: getenv("LISTEN_FDNAMES")}
	for fd := activation.First; fd < activation.First+n; fd++ {
		// What is close-on-exec did not come with the process.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			return Passed{}, fmt.Errorf("pass descriptors on: LISTEN_FDS is %d, but descriptor %d is not open", n, fd)
		}
	}
	for fd := activation.First; fd < activation.First+n; fd++ {
		p.Files = append(p.Files, os.NewFile(uintptr(fd), fmt.Sprint("passed ", fd)))
	}
	return p, nil
}

// environment is what tells the command of them, as far as it is known before it runs:
// the agent adds the rest.
func (p Passed) environment() []string {
	if len(p.Files) == 0 || p.Names == "" {
		return nil
	}
	return []string{"LISTEN_FDNAMES=" + p.Names}
}

// handSetup sends the agent its orders, with the terminal's descriptor, if there is
// one, and those for the command.
func (a *agentProc) handSetup(setup *handoff.AgentSetup, tty *os.File, passed []*os.File) error {
	files := passed
	if tty != nil {
		setup.Terminal = true
		files = append([]*os.File{tty}, passed...)
	}
	err := a.conn.Send(setup, files...)
	seam.CloseAll(passed)
	if err == nil || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // an agent that is gone reports its end as an event
	}
	return fmt.Errorf("tell the agent what to do, with %d descriptors for the command: %w", len(passed), err)
}
