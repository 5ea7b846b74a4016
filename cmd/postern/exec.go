package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/userns/agent"
	"github.com/postern-net/postern/userns/agent/term"
	"github.com/postern-net/postern/userns/join"
)

func (a *app) execCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "exec [--all] NAME|PID [--] [COMMAND [ARG...]]",
		Short: "Run a command of the host in a running network",
		Long: `Run COMMAND (default: $SHELL) in the user and network namespace of an instance,
of a named network (postern netns), or of the process PID, with the files of the
host. Its exit code is postern's. A detached network (postern run --detach-netns)
is entered by the instance's name or the PID in its child_pid.

With --all COMMAND is in all namespaces of the process: it is one of the
container's programs, sees the container's files and processes, and begins in /.`,
		Example: `  postern exec amber-gate -- ip address
  postern exec 4711 ss -tn
  postern exec --all 4711 sh`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, command := args[0], args[1:]
			// --all may also stand behind the name, where flags end.
			if len(command) > 0 && command[0] == "--all" {
				all, command = true, command[1:]
			}
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				command = a.shell()
				if all { // the host's shell may not be there
					command = []string{"/bin/sh"}
				}
			}
			if err := sealDescriptors(); err != nil {
				a.failed(exitFailed, err)
				return nil
			}
			a.failed(a.execIn(cmd.Context(), target, command, all))
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&all, "all", false, "enter all namespaces of the process, and see the container's files")
	return cmd
}

// execIn runs a command in the namespaces of the target and returns its exit code.
func (a *app) execIn(ctx context.Context, name string, command []string, all bool) (exitCode int, err error) {
	target, err := a.openTarget(name)
	if err != nil {
		return exitFailed, err
	}
	defer target.Close()
	var paths []string
	if all {
		paths = candidates(command[0], a.getenv("PATH"))
	} else {
		path, err := exec.LookPath(command[0])
		if err != nil && !errors.Is(err, exec.ErrDot) {
			return execFailed(command[0], err)
		}
		paths = []string{path}
	}
	signals := make(chan os.Signal, 32)
	for _, s := range []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	p, err := startFirst(paths, func(path string) (*join.Process, error) {
		return target.Start(ctx, join.Command{
			Path: path, Argv: command, Env: a.env, Files: []*os.File{a.in, a.out, a.err}, Pdeathsig: unix.SIGKILL,
			Mount: all, PID: all, IPC: all, UTS: all, Cgroup: all,
		})
	})
	if errors.Is(err, join.ErrNoProcess) {
		return exitFailed, fmt.Errorf("%w: --all takes a process; leave it out, or name the PID of one in that network", err)
	}
	if err != nil {
		return execFailed(command[0], err)
	}
	return await(p, signals)
}

// maxCandidates bounds the places in which a command is looked for; each costs a
// child.
const maxCandidates = 64

// defaultPath is where commands are looked for when PATH is not set (execvp(3)).
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// candidates are the paths that execvp(3) tries for a command. Whether there is such
// a file only the target's mount namespace knows.
func candidates(command, path string) []string {
	if strings.ContainsRune(command, '/') {
		return []string{command}
	}
	if path == "" {
		path = defaultPath
	}
	var list []string
	for _, dir := range filepath.SplitList(path) {
		if filepath.IsAbs(dir) && len(list) < maxCandidates { // never the working directory
			list = append(list, filepath.Join(dir, command))
		}
	}
	return list
}

// startFirst starts the first that can be executed. Of several, what is missing or may
// not be executed is passed over, as exec.LookPath does.
func startFirst(paths []string, start func(string) (*join.Process, error)) (p *join.Process, err error) {
	err = exec.ErrNotFound
	for _, path := range paths {
		p, startErr := start(path)
		switch {
		case startErr == nil:
			return p, nil
		case len(paths) > 1 && (errors.Is(startErr, unix.ENOENT) || errors.Is(startErr, unix.ENOTDIR) || errors.Is(startErr, unix.EACCES)):
		default:
			return nil, startErr
		}
	}
	return nil, err
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
	if err == nil {
		return openInstance(info)
	}
	if target, found, keptErr := openKept(root, name); found {
		return target, keptErr
	}
	return nil, err
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
	if err := useDetached(target, info); err != nil {
		target.Close()
		return nil, fmt.Errorf("instance %s: %w", info.Name, err)
	}
	return target, nil
}

// useDetached turns to the network namespace beside an instance's command. The command
// may have put something else in its place; only a network namespace of its own user
// namespace can be joined with that.
func useDetached(target *join.Target, info instance.Info) error {
	f, err := info.OpenNetNS()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := target.UseNetNS(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
		return err
	}
	return target.Alive() // so the path was that process's own
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
