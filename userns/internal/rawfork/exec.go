package rawfork

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/nofile"
)

// Exec is a program to execute at the end of a script.
type Exec struct {
	Path string
	Argv []string // nil: Path alone
	Env  []string // nil: our own environment
	// Files become descriptors 0, 1, 2 … of the program; nil and what is missing
	// up to 2 is /dev/null. It gets no others, not even those that we inherited
	// without close-on-exec (Linux 5.11 and later). They stay the caller's.
	Files []*os.File
	Dir   string // working directory; empty: unchanged
	// Setsid makes a session of its own, Setpgid a process group of its own.
	Setsid  bool
	Setpgid bool
	// Pdeathsig is sent to the program when we end; 0: none.
	Pdeathsig unix.Signal
}

// firstSpare is the lowest descriptor used for what the child still needs, the
// control socket and the originals, so that putting the program's own in place
// never overwrites one of them.
const firstSpare = MaxExecFiles

// MaxExecFiles is how many descriptors a program can be given: more than any needs,
// and few enough that firstSpare is below a small limit of open files.
const MaxExecFiles = 16

// AddExec appends the steps that turn the child into the program. The returned
// files are duplicates that the steps refer to; close them after Fork.
func (s *Script) AddExec(e Exec) ([]*os.File, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("execute %q: %w", e.Path, err)
	}
	spare, err := e.duplicates()
	if err != nil {
		return nil, fmt.Errorf("execute %s: %w", e.Path, err)
	}
	switch {
	case e.Setsid:
		s.Call("start a session", unix.SYS_SETSID)
	case e.Setpgid:
		s.Call("start a process group", unix.SYS_SETPGID)
	}
	if e.Dir != "" {
		s.Call("change to "+e.Dir, unix.SYS_CHDIR, s.Path(e.Dir))
	}
	for i, f := range spare {
		s.Call(fmt.Sprintf("give descriptor %d", i), unix.SYS_DUP3, Int(int(f.Fd())), Int(i), Int(0))
	}
	s.Try("keep other descriptors", [3]syscall.Errno{unix.ENOSYS, unix.EINVAL}, unix.SYS_CLOSE_RANGE,
		Int(len(spare)), Int(-1), Int(unix.CLOSE_RANGE_CLOEXEC))
	s.DieWithParent(e.Pdeathsig)
	s.CheckParent()
	s.restoreNofile()
	s.Call("execute "+e.Path, unix.SYS_EXECVE, s.Path(e.Path), s.Strings(e.argv()), s.Strings(e.env()))
	return spare, nil
}

// restoreNofile gives back the soft limit of open files that Go raised in us. It
// does not matter if that fails.
func (s *Script) restoreNofile() {
	soft, hard, ok := nofile.Original()
	if !ok {
		return
	}
	limit := &unix.Rlimit{Cur: soft, Max: hard}
	s.Try("restore the limit of open files", [3]syscall.Errno{unix.EPERM, unix.EINVAL, unix.ENOSYS},
		unix.SYS_PRLIMIT64, Int(0), Int(unix.RLIMIT_NOFILE), Pin(s, limit), Int(0))
}

func (e Exec) argv() []string {
	if e.Argv == nil {
		return []string{e.Path}
	}
	return e.Argv
}

func (e Exec) env() []string {
	if e.Env == nil {
		return os.Environ()
	}
	return e.Env
}

// check refuses what could not be handed to execve as it is.
func (e Exec) check() error {
	if e.Path == "" {
		return unix.ENOENT
	}
	if len(e.Files) > MaxExecFiles {
		return fmt.Errorf("%d descriptors, the limit is %d", len(e.Files), MaxExecFiles)
	}
	if strings.ContainsRune(e.Path+e.Dir, 0) {
		return unix.EINVAL
	}
	for _, list := range [][]string{e.argv(), e.env()} {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				return fmt.Errorf("zero byte in %q: %w", v, unix.EINVAL)
			}
		}
	}
	return nil
}

// duplicates gives each of the program's descriptors a number that no step of the
// child overwrites. It goes through SyscallConn, because File.Fd is not safe
// against a concurrent Close.
func (e Exec) duplicates() ([]*os.File, error) {
	var spare []*os.File
	for i := range max(3, len(e.Files)) {
		var f *os.File
		if i < len(e.Files) {
			f = e.Files[i]
		}
		d, err := duplicate(f)
		if err != nil {
			CloseAll(spare)
			return nil, fmt.Errorf("descriptor %d: %w", i, err)
		}
		spare = append(spare, d)
	}
	return spare, nil
}

// duplicate gives f, or /dev/null for nil, another descriptor from firstSpare up.
func duplicate(f *os.File) (*os.File, error) {
	if f == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close()
		f = null
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var derr error
	if err := rc.Control(func(from uintptr) {
		fd, derr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, firstSpare)
	}); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
