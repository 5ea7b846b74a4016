package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// Config says what to start. Maps is required, the rest has defaults.
type Config struct {
	// Maps is PlanMaps's plan.
	Maps IDMaps
	// HostNet leaves the program in our network namespace; otherwise it has a new one.
	HostNet bool
	// PID, IPC, UTS and Cgroup ask for these namespaces besides the user and mount
	// namespace that there always are.
	PID, IPC, UTS, Cgroup bool
	// Path is the program. Empty: our own executable, through /proc/self/exe.
	Path string
	// Argv is the program's argument vector; nil: Path alone.
	Argv []string
	// Env is its environment; nil: our own.
	Env []string
	// Files become its descriptors 0, 1, 2 …, and it gets no others; nil, and what
	// is missing up to 2, is /dev/null. At most 16. They stay the caller's.
	Files []*os.File
	// Dir is its working directory; empty: ours.
	Dir string
	// Pdeathsig is sent to it when we end; 0: none.
	Pdeathsig unix.Signal
	// Setsid makes it a session's leader, Setpgid a process group's. Without
	// either it stays in our session and group, as job control wants it.
	Setsid, Setpgid bool
}

// Process is the first inhabitant of the new namespaces; see rawfork.Process for
// its methods: Wait, Signal, Kill and Close, which ends it.
type Process struct {
	*rawfork.Process
	// Maps is what was written. Its Notice differs from the plan's when newuidmap
	// or newgidmap failed and the single-id map took their place.
	Maps IDMaps
}

// Start creates the namespaces and executes the program in them. The context
// bounds the start only. A kernel that refuses is explained, with the fix where
// there is one; the errno is wrapped.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	maps := cfg.Maps
	p, err := startWith(ctx, cfg, maps)
	if err != nil && maps.Fallback && errors.Is(err, ErrMapping) && ctx.Err() == nil {
		maps = maps.degraded(err)
		p, err = startWith(ctx, cfg, maps)
	}
	if err != nil {
		return nil, err
	}
	return &Process{Process: p, Maps: maps}, nil
}

// startWith is one attempt.
func startWith(ctx context.Context, cfg Config, maps IDMaps) (*rawfork.Process, error) {
	if err := maps.check(); err != nil {
		return nil, err
	}
	var s rawfork.Script
	spare, err := cfg.script(&s)
	if err != nil {
		return nil, err
	}
	defer rawfork.CloseAll(spare)
	child, err := s.Fork(cfg.flags())
	if err != nil {
		return nil, explained(err, cfg)
	}
	if err := maps.write(ctx, child.PID, child.PIDFD); err != nil {
		return nil, abandon(child, err)
	}
	if err := child.GoOn(); err != nil {
		return nil, abandon(child, fmt.Errorf("start the namespaces' first process: %w", err))
	}
	if _, err := child.Result(ctx); err != nil {
		var step *rawfork.StepError
		if !errors.As(err, &step) {
			err = fmt.Errorf("start the namespaces' first process: %w", err)
		}
		return nil, abandon(child, err)
	}
	return child.Exec()
}

// abandon ends a child whose start failed.
func abandon(child *rawfork.Child, err error) error {
	return rawfork.Both(err, child.Kill())
}

// flags are clone's for the namespaces asked for.
func (c Config) flags() uintptr {
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNS)
	for flag, wanted := range map[uintptr]bool{
		unix.CLONE_NEWNET:    !c.HostNet,
		unix.CLONE_NEWPID:    c.PID,
		unix.CLONE_NEWIPC:    c.IPC,
		unix.CLONE_NEWUTS:    c.UTS,
		unix.CLONE_NEWCGROUP: c.Cgroup,
	} {
		if wanted {
			flags |= flag
		}
	}
	return flags
}

// script is what the child does; see the package comment.
func (c Config) script(s *rawfork.Script) ([]*os.File, error) {
	s.DieWithParent(unix.SIGKILL)
	s.Wait()
	s.Call("become group 0 of the new user namespace", syscall.SYS_SETRESGID, rawfork.Int(0), rawfork.Int(0), rawfork.Int(0))
	s.Call("become user 0 of the new user namespace", syscall.SYS_SETRESUID, rawfork.Int(0), rawfork.Int(0), rawfork.Int(0))
	path := c.Path
	if path == "" {
		path = "/proc/self/exe"
	}
	return s.AddExec(rawfork.Exec{
		Path: path, Argv: c.Argv, Env: c.Env, Files: c.Files, Dir: c.Dir,
		Setsid: c.Setsid, Setpgid: c.Setpgid, Pdeathsig: c.Pdeathsig,
	})
}
