package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/userns/agent"
	"github.com/postern-net/postern/userns/agent/term"
	"github.com/postern-net/postern/userns/join"
)

func (a *app) execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec NAME|PID [--] [COMMAND [ARG...]]",
		Short: "Run a command of the host in a running network",
		Long: `Run COMMAND (default: $SHELL) in the user and network namespace of an instance,
or of the process PID, with the files of the host. Its exit code is postern's.
A detached network (postern run --detach-netns) is entered by the instance's name
or the PID in its child_pid.`,
		Example: `  postern exec amber-gate -- ip address
  postern exec 4711 ss -tn`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, command := args[0], args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				command = a.shell()
			}
			if err := sealDescriptors(); err != nil {
				a.failed(exitFailed, err)
				return nil
			}
			a.failed(a.execIn(cmd.Context(), target, command))
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// execIn runs a command in the namespaces of the target and returns its exit code.
func (a *app) execIn(ctx context.Context, name string, command []string) (exitCode int, err error) {
	target, err := a.openTarget(name)
	if err != nil {
		return exitFailed, err
	}
	defer target.Close()
	path, err := exec.LookPath(command[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return execFailed(command[0], err)
	}
	signals := make(chan os.Signal, 32)
	for _, s := range []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	p, err := target.Start(ctx, join.Command{
		Path: path, Argv: command, Env: a.env, Files: []*os.File{a.in, a.out, a.err}, Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		return execFailed(command[0], err)
	}
	return await(p, signals)
}

// openTarget finds what the user means: an instance by name, else a process.
func (a *app) openTarget(name string) (*join.Target, error) {
	root, err := instance.Places{RuntimeDir: a.getenv("XDG_RUNTIME_DIR")}.Root()
	if err != nil {
		return nil, err
	}
	info, err := instance.Find(root, name)
	if pid, numErr := strconv.Atoi(name); err != nil && numErr == nil && pid > 0 {
		if i, found := instance.OfProcess(pid); found && i.NetNS != "" {
			return openInstance(i)
		}
		return join.OpenPID(pid)
	}
	if err != nil {
		return nil, err
	}
	return openInstance(info)
}

// openInstance opens the namespaces of an instance. It holds the process by a
// pidfd before it compares it with the one on record, so a pid that was used again
// is noticed.
func openInstance(info instance.Info) (*join.Target, error) {
	if info.ChildPID == 0 {
		return nil, info.CheckChild()
	}
	target, err := join.OpenPID(info.ChildPID)
	if err != nil {
		return nil, fmt.Errorf("instance %s: %w", info.Name, err)
	}
	if err := info.CheckChild(); err != nil {
		target.Close()
		return nil, err
	}
	if info.NetNS == "" {
		return target, nil
	}
	defer target.Close()
	detached, err := openDetached(info)
	if err == nil {
		if err = target.Alive(); err == nil { // so the paths were that process's own
			return detached, nil
		}
		detached.Close()
	}
	return nil, fmt.Errorf("instance %s: %w", info.Name, err)
}

// openDetached opens the network namespace beside an instance's command. The
// command may have put something else in its place; only a network namespace of
// its own user namespace can be joined with that.
func openDetached(info instance.Info) (*join.Target, error) {
	f, err := info.OpenNetNS()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return join.OpenPaths(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fmt.Sprintf("/proc/%d/ns/user", info.ChildPID))
}

// execFailed maps the error of a command that did not start.
func execFailed(name string, err error) (int, error) {
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		err = lookup.Err
	}
	err = pathless(err)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return agent.ExitNotFound, fmt.Errorf("run %s: command not found", name)
	case errors.Is(err, fs.ErrNotExist):
		return agent.ExitNotFound, fmt.Errorf("run %s: %w", name, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EISDIR):
		return agent.ExitNotExecutable, fmt.Errorf("run %s: %w", name, err)
	}
	return exitFailed, fmt.Errorf("run %s: %w", name, err)
}

// await passes signals on until the command has ended. The command is in our
// process group, so the terminal's signals reach it by themselves.
func await(p *join.Process, signals <-chan os.Signal) (exitCode int, err error) {
	terminal := term.Open()
	defer terminal.Close()
	type outcome struct {
		status unix.WaitStatus
		err    error
	}
	ended := make(chan outcome, 1)
	go func() {
		status, err := p.Wait()
		ended <- outcome{status, err}
	}()
	for {
		select {
		case s := <-signals:
			if (s == unix.SIGINT || s == unix.SIGQUIT) && terminal.Ours() {
				continue
			}
			_ = p.Signal(s.(unix.Signal)) // it may just have ended
		case o := <-ended:
			_ = p.Close()
			switch {
			case o.err != nil:
				return exitFailed, o.err
			case o.status.Signaled():
				return 128 + int(o.status.Signal()), nil
			}
			return o.status.ExitStatus(), nil
		}
	}
}
