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
	switch {
	case err != nil:
	case len(a.passed) > 0:
		a.pid, err = a.forkPassing(path, foreground)
	default:
		a.pid, err = a.fork(path, a.argv, foreground)
		if errors.Is(err, unix.ENOEXEC) {
			a.pid, err = a.fork(shell, byShell(path, a.argv), foreground)
		}
	}
	if err != nil {
		return a.failRun(err)
	}
	if err := a.followNetwork(); err != nil {
		return a.fail(ExitFailed, err)
	}
	return a.conn.Send(&handoff.AgentStarted{PID: a.pid}) == nil
}

// failRun reports that the command cannot be run.
func (a *agent) failRun(err error) bool {
	return a.fail(exitCode(err), fmt.Errorf("run %s: %w", a.argv[0], cause(err)))
}

// shell runs a script without an interpreter line, as execvp(3) has it.
const shell = "/bin/sh"

// byShell is the shell's argument vector for a script that was to have argv.
func byShell(script string, argv []string) []string {
	return append([]string{"sh", script}, argv[1:]...)
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

// fork starts path in a process group of its own, with our standard streams and fds
// after them. Its environment and directory are the agent's, which are the supervisor's.
func (a *agent) fork(path string, argv []string, foreground bool, fds ...uintptr) (int, error) {
	attr := &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: append([]uintptr{0, 1, 2}, fds...),
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
