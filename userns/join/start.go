package join

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// Process is a program started in a target; see rawfork.Process for its methods:
// Wait, Signal, Kill and Close, which ends it.
type Process = rawfork.Process

// Command is a program to run in a target. By default only the user and network
// namespace are entered: the program and all its files are the host's.
type Command struct {
	// Path is the program, found in the mount namespace that it will run in.
	Path string
	// Argv is its argument vector; nil: Path alone.
	Argv []string
	// Env is its environment; nil: our own.
	Env []string
	// Files become its descriptors 0, 1, 2 …, and it gets no others; nil, and what
	// is missing up to 2, is /dev/null. At most 64. They stay the caller's.
	Files []*os.File
	// Dir is its working directory; empty: ours, or that namespace's "/" with Mount.
	Dir string
	// Mount, PID, IPC, UTS and Cgroup enter these namespaces of the target's
	// process too. A target made from paths has none.
	Mount, PID, IPC, UTS, Cgroup bool
	// Pdeathsig is sent to it when we end; 0: none.
	Pdeathsig unix.Signal
	// Setsid makes it a session's leader, Setpgid a process group's.
	Setsid, Setpgid bool
}

// Start runs a program in the target. A process that lives in our own network
// namespace is no obstacle: we stay there, since only that namespace's owner may join
// it. Where the user namespace maps id 0, the
// program is root in there; elsewhere it keeps our ids and gets the namespace's
// capabilities as ambient ones (capabilities(7)). A program that cannot be
// executed is execve's errno. The context bounds the start only.
func (t *Target) Start(ctx context.Context, cmd Command) (*Process, error) {
	further, err := t.further(cmd)
	defer closeFurther(further)
	if err != nil {
		return nil, err
	}
	var s rawfork.Script
	t.enterUser(&s)
	if !t.sameNet {
		t.enterNet(&s)
	}
	for _, f := range further {
		s.Call("join the "+kinds[f.kind]+" namespace", unix.SYS_SETNS, rawfork.Int(int(f.file.Fd())), rawfork.Int(f.kind))
	}
	pidfd := rawfork.NewDescriptors(1)
	first := s.NewLabel()
	sibling := holds(further, unix.CLONE_NEWPID)
	if sibling {
		// Only children of the process that joined are in the pid namespace.
		s.ForkSibling(pidfd, first)
	}
	if !t.sameUser {
		becomeRoot(&s)
	}
	spare, err := s.AddExec(rawfork.Exec{
		Path: cmd.Path, Argv: cmd.Argv, Env: cmd.Env, Files: cmd.Files, Dir: cmd.Dir,
		Setsid: cmd.Setsid, Setpgid: cmd.Setpgid, Pdeathsig: cmd.Pdeathsig,
	})
	if err != nil {
		return nil, err
	}
	defer rawfork.CloseAll(spare)
	s.Place(first)
	if sibling {
		s.Send(pidfd)
	}
	return t.run(ctx, &s, sibling)
}

// run forks the script and waits until the program runs.
func (t *Target) run(ctx context.Context, s *rawfork.Script, sibling bool) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	child, err := s.Fork(0)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", t.name, err)
	}
	files, err := child.Result(ctx)
	switch {
	case err == nil && !sibling:
		return child.Exec()
	case err == nil && len(files) == 1:
		return child.ExecSibling(files[0])
	case err == nil:
		err = rawfork.ErrChildDied
	}
	for _, f := range files {
		rawfork.KillPIDFD(f)
		f.Close()
	}
	return nil, t.explain(rawfork.Both(err, child.Kill()))
}

// becomeRoot takes id 0 where it is mapped, else the namespace's capabilities
// along. Supplementary groups are given up where that is allowed; where setgroups
// is denied they mean nothing inside anyway.
func becomeRoot(s *rawfork.Script) {
	ambient, done := s.NewLabel(), s.NewLabel()
	s.Try("give up supplementary groups", [3]syscall.Errno{unix.EPERM}, unix.SYS_SETGROUPS, rawfork.Int(0), rawfork.Int(0))
	unmapped := [3]syscall.Errno{unix.EINVAL}
	s.Try("become group 0", unmapped, unix.SYS_SETRESGID, rawfork.Int(0), rawfork.Int(0), rawfork.Int(0))
	s.Add(rawfork.Step{
		What: "become user 0", Nr: unix.SYS_SETRESUID, Args: [6]rawfork.Arg{rawfork.Int(0), rawfork.Int(0), rawfork.Int(0)},
		Ignore: unmapped, Failed: ambient,
	})
	s.Jump(done)
	s.Place(ambient)
	keepCapabilities(s)
	s.Place(done)
}

// keepCapabilities makes all capabilities inheritable and ambient, so that execve
// of a program keeps them for an id that is not 0 (capabilities(7)).
func keepCapabilities(s *rawfork.Script) {
	last := lastCapability()
	all := uint64(1)<<(last+1) - 1
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{}
	for i := range data {
		half := uint32(all >> (32 * i))
		data[i] = unix.CapUserData{Effective: half, Permitted: half, Inheritable: half}
	}
	s.Call("make capabilities inheritable", unix.SYS_CAPSET, rawfork.Pin(s, header), rawfork.Pin(s, data))
	for c := range last + 1 {
		s.Call("make capabilities ambient", unix.SYS_PRCTL, rawfork.Int(unix.PR_CAP_AMBIENT),
			rawfork.Int(unix.PR_CAP_AMBIENT_RAISE), rawfork.Int(c), rawfork.Int(0), rawfork.Int(0))
	}
}

// lastCapability is the highest capability that the kernel knows, at most 63.
func lastCapability() int {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= 0 && n < 63 {
			return n
		}
	}
	return unix.CAP_LAST_CAP
}
