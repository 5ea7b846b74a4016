package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/seam"
)

// Descriptors for the command come with AgentSetup, after the terminal's, and become
// its descriptors from 3 on, announced by LISTEN_FDS and LISTEN_PID (sd_listen_fds(3)).
// LISTEN_PID has to be the command's own process id, which its environment must hold
// when it begins and which exists only after the fork. So the fork executes our own
// program once more, which knows its id and then becomes the command:
//
//	agent ──fork──▶ handOver, with a slip ──execve──▶ command
//
// The slip is a file in memory, the descriptor after the command's own. The agent
// writes on it what to execute, handOver empties it, and writes the errno on it if
// that cannot be executed. The agent reads it when the process has ended, so that it
// waits for nobody.

// MaxPassed is how many descriptors the command can be given: what one message
// carries, beside the terminal's.
const MaxPassed = fdpass.MaxFiles - 1

// firstPassed is the first descriptor that is passed, SD_LISTEN_FDS_START.
const firstPassed = 3

// slip is the file between the agent and handOver.
type slip struct{ file *os.File }

// newSlip returns a slip that says what to execute. No word holds a zero byte: they
// are, or become, arguments of execve(2).
func newSlip(path string, argv []string) (*slip, error) {
	fd, err := unix.MemfdCreate("postern-slip", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("postern-slip", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	s := &slip{os.NewFile(uintptr(fd), "slip")}
	if _, err := s.file.WriteString(path + "\x00" + strings.Join(argv, "\x00") + "\x00"); err != nil {
		_ = s.file.Close()
		return nil, err
	}
	return s, nil
}

// take reads what to execute and empties the slip.
func (s *slip) take() (path string, argv []string, err error) {
	text, err := s.read()
	if err != nil {
		return "", nil, err
	}
	words := strings.Split(strings.TrimSuffix(text, "\x00"), "\x00")
	if len(words) < 2 {
		return "", nil, errors.New("it does not say what to execute")
	}
	return words[0], words[1:], s.file.Truncate(0)
}

// read returns the text. The file's offset is the other process's too.
func (s *slip) read() (string, error) {
	st, err := s.file.Stat()
	if err != nil {
		return "", err
	}
	text := make([]byte, st.Size())
	n, err := s.file.ReadAt(text, 0)
	if n == len(text) {
		err = nil
	}
	return string(text[:n]), err
}

// failed writes down why the command could not be executed.
func (s *slip) failed(err error) {
	var errno unix.Errno
	if errors.As(err, &errno) {
		_, _ = s.file.WriteAt([]byte(strconv.Itoa(int(errno))), 0) // the exit code says it too
	}
}

// failure is why the command could not be executed, nil if it was. It is asked when
// the process has ended. A nil slip has none.
func (s *slip) failure() error {
	if s == nil {
		return nil
	}
	text, err := s.read()
	if errno, bad := strconv.Atoi(text); err == nil && bad == nil && errno > 0 {
		return unix.Errno(errno)
	}
	return nil
}

func (s *slip) close() {
	if s != nil {
		_ = s.file.Close()
	}
}

// forkPassing starts the command with the descriptors that are passed to it, which we
// no longer hold afterwards: a socket that the command closes shall be closed.
func (a *agent) forkPassing(path string, foreground bool) (pid int, err error) {
	if a.slip, err = newSlip(path, a.argv); err != nil {
		return 0, err
	}
	files := append(a.passed, a.slip.file)
	fds, err := numbers(files)
	if err != nil {
		return 0, err
	}
	if err := os.Setenv("LISTEN_FDS", strconv.Itoa(len(a.passed))); err != nil {
		return 0, err
	}
	pid, err = a.fork("/proc/self/exe", []string{Name}, foreground, fds...)
	seam.CloseAll(a.passed)
	a.passed = nil
	return pid, err
}

// numbers returns the numbers of open files. File.Fd could change their blocking mode,
// which is not ours alone.
func numbers(files []*os.File) ([]uintptr, error) {
	var fds []uintptr
	for _, f := range files {
		rc, err := f.SyscallConn()
		if err == nil {
			err = rc.Control(func(fd uintptr) { fds = append(fds, fd) })
		}
		if err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// errNoSlip is what a program finds that somebody has started by hand in our name.
var errNoSlip = errors.New("no descriptors to hand over: this program is started by postern itself")

// handOver turns this process, which forkPassing has started, into the command. It
// returns an exit code if that fails.
func handOver() int {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 1 || n > MaxPassed {
		fmt.Fprintln(os.Stderr, "postern:", errNoSlip)
		return ExitFailed
	}
	unix.CloseOnExec(firstPassed + n)
	s := &slip{os.NewFile(uintptr(firstPassed+n), "slip")}
	path, argv, err := s.take()
	if err == nil {
		err = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "postern:", fmt.Errorf("%w: %w", errNoSlip, err))
		return ExitFailed
	}
	env := os.Environ()
	err = unix.Exec(path, argv, env)
	if errors.Is(err, unix.ENOEXEC) {
		err = unix.Exec(shell, byShell(path, argv), env)
	}
	s.failed(err)
	return exitCode(err)
}
