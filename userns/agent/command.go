package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
)

// start starts the command and reports it; false if it could not be started.
func (a *agent) start(foreground bool) bool {
	if a.pid != 0 || len(a.argv) == 0 {
		return a.fail(ExitFailed, errors.New("start the command: asked twice, or without one"))
	}
	path, err := lookPath(a.argv[0])
	if err == nil {
		a.pid, err = a.fork(path, a.argv, foreground)
	}
	if errors.Is(err, unix.ENOEXEC) {
		// A script without an interpreter line; execvp(3) runs it by the shell.
		a.pid, err = a.fork("/bin/sh", append([]string{"sh", path}, a.argv[1:]...), foreground)
	}
	if err != nil {
		return a.fail(exitCode(err), fmt.Errorf("run %s: %w", a.argv[0], cause(err)))
	}
	if err := a.followNetwork(); err != nil {
		return a.fail(ExitFailed, err)
	}
	return a.conn.Send(&handoff.AgentStarted{PID: a.pid}) == nil
}

// followNetwork has the agent itself enter the network namespace that it has made beside
// the command's: those who know RootlessKit look for it at the child's
// /proc/PID/ns/net (nsenter(1) -t). Nothing is forked after the command.
func (a *agent) followNetwork() error {
	if a.detached == nil {
		return nil
	}
	// The mount keeps the namespace.
	defer func() { _ = a.detached.Close(); a.detached = nil }()
	if err := unix.Setns(int(a.detached.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the detached network namespace: %w", os.NewSyscallError("setns", err))
	}
	return nil
}

// fork starts path in a process group of its own. Its environment and directory
// are the agent's, which are the supervisor's.
func (a *agent) fork(path string, argv []string, foreground bool) (int, error) {
	attr := &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
	}
	if tty := a.terminal.File(); foreground && tty != nil {
		attr.Sys.Foreground = true
		attr.Sys.Ctty = int(tty.Fd())
	}
	pid, err := syscall.ForkExec(path, argv, attr)
	if attr.Sys.Foreground && (errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOTTY)) {
		// The terminal has gone away meanwhile.
		attr.Sys.Foreground = false
		return syscall.ForkExec(path, argv, attr)
	}
	return pid, err
}

// lookPath finds the command as execvp(3) does: a relative entry of PATH counts.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		return path, nil
	}
	return path, err
}

// exitCode is 127 for a command that does not exist and 126 for one that cannot
// be executed (POSIX, Shell Command Language 2.8.2).
func exitCode(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return ExitNotFound
	}
	return ExitNotExecutable
}

// cause strips the command's name from an error of os/exec: ours names it already.
func cause(err error) error {
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		err = lookup.Err
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("command not found")
	}
	return err
}

// signal sends s to the command or to its process group. A command that has just
// ended needs no signal.
func (a *agent) signal(s unix.Signal, group bool) {
	switch {
	case a.pid == 0:
	case group:
		_ = unix.Kill(-a.pid, s)
	default:
		_ = unix.Kill(a.pid, s)
	}
}

// resume continues the command's process group, with the terminal if foreground.
// A terminal that cannot be handed over stops the command again when it uses it.
func (a *agent) resume(foreground bool) {
	if a.pid == 0 {
		return
	}
	if foreground {
		_ = a.terminal.SetForeground(a.pid)
	}
	_ = unix.Kill(-a.pid, unix.SIGCONT)
}
