package ocihook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ReadyFD is the descriptor by which the server reports.
const ReadyFD = 3

// What the server writes: Ready, or Failed and the reason.
const (
	Ready  = "1"
	Failed = "!"
)

// maxReason bounds the server's reason, bytes.
const maxReason = 16 << 10

// server is a server that was started and has not reported.
type server struct {
	cmd   *exec.Cmd
	ready *os.File
	log   string
}

// start starts our own program as a daemon: a session of its own, "/" for a working
// directory, nothing on its standard input and output, a file for what it has to
// say, and no descriptor of the runtime's: those that we hold are close-on-exec,
// which the caller has seen to.
func start(args, env []string, log string) (*server, error) {
	file, err := openLog(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	ready, report, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the network's server: %w", err)
	}
	defer report.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{"postern"}, args...), Env: env, Dir: "/",
		Stderr: file, ExtraFiles: []*os.File{report}, // the first is ReadyFD
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		_ = ready.Close()
		return nil, fmt.Errorf("start the network's server: %w", err)
	}
	return &server{cmd: cmd, ready: ready, log: log}, nil
}

// openLog makes the server's file anew: one of another kind or owner is not ours.
func openLog(path string) (*os.File, error) {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("remove stale %s: %w", path, err)
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// await waits for the server's report.
func (s *server) await() error {
	defer s.ready.Close()
	if err := s.ready.SetReadDeadline(time.Now().Add(readyWithin)); err != nil {
		return fmt.Errorf("wait for the network: %w", err)
	}
	said, err := io.ReadAll(io.LimitReader(s.ready, maxReason))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the network is not ready after %v%s", readyWithin, s.lastWords())
	case err != nil:
		return fmt.Errorf("wait for the network: %w", err)
	}
	if err = verdict(string(said)); errors.Is(err, errEarly) {
		return fmt.Errorf("%w%s", err, s.lastWords())
	}
	return err
}

// lastWords is the end of what the server wrote to its file.
func (s *server) lastWords() string {
	f, err := os.Open(s.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxReason {
		_, _ = f.Seek(-maxReason, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, maxReason))
	if text = bytes.TrimSpace(text); len(text) == 0 {
		return ""
	}
	return ": " + string(text)
}

// kill ends a server that is of no use and waits for it. Its engine ends with it.
func (s *server) kill() {
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	timer := time.AfterFunc(settleWithin, func() { _ = s.cmd.Process.Kill() })
	defer timer.Stop()
	_ = s.cmd.Wait()
}
