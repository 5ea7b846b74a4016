package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

// started is a postern run of a test, with its instance.json.
type started struct {
	cmd  *exec.Cmd
	info instance.Info
	pid  int // the command's
	// mark stands in the command line of everything that it started.
	mark string
}

// command finds the process of the command itself: the parent of the last sleep. The
// shells before it have become what they are to be by then, for a subshell has its
// parent's command line until it executes something.
func (s *started) command() (int, error) {
	all := processes()
	for _, want := range []string{"sh -c sleep 1020; ", "sh -c sleep 1021; "} {
		if !slices.ContainsFunc(all, func(p process) bool {
			return strings.HasPrefix(p.command, want) && strings.Contains(p.command, s.mark)
		}) {
			return 0, fmt.Errorf("%s%s does not run", want, s.mark)
		}
	}
	for _, p := range s.left() {
		if slices.ContainsFunc(all, func(q process) bool { return q.parent == p.pid && q.command == "sleep 1022 " }) {
			return p.pid, nil
		}
	}
	return 0, errors.New("the command has not come to its own sleep")
}

// start runs a command that leaves children and orphans of all kinds around.
func start(t *testing.T) *started {
	t.Helper()
	dir := shortDir(t)
	s := &started{mark: filepath.Base(dir)}
	s.cmd = exec.Command("/proc/self/exe", "run", "--name", "one", "--", "sh", "-c",
		"(setsid sh -c 'sleep 1020; : "+s.mark+"' &) ; sh -c 'sleep 1021; : "+s.mark+"' & sleep 1022; : "+s.mark)
	s.cmd.Args[0] = "postern"
	s.cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	file := filepath.Join(dir, "postern", "one", "instance.json")
	err := eventually(patience, func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if s.pid, err = s.command(); err != nil {
			return err
		}
		return json.Unmarshal(b, &s.info)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// left lists what is left of it: all that carries the mark, and the engine.
func (s *started) left() []process {
	var left []process
	for _, p := range processes() {
		if strings.Contains(p.command, s.mark) || p.parent == s.cmd.Process.Pid {
			left = append(left, p)
		}
	}
	return left
}

// TestGoneWithin kills each of the processes whose death is the instance's and
// prints how long everything took to be gone; the promise is 500 ms.
func TestGoneWithin(t *testing.T) {
	if !asUser(t) {
		return
	}
	for _, who := range []string{"supervisor", "agent", "command"} {
		s := start(t)
		victim := map[string]int{"supervisor": s.info.PID, "agent": s.info.ChildPID, "command": s.pid}[who]
		if victim == 0 {
			t.Fatalf("no %s to kill", who)
		}
		begin := time.Now()
		if err := unix.Kill(victim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.cmd.Wait() }() // reaps the supervisor, whose zombie has no command line
		err := eventually(goneWithin, func() error {
			if left := s.left(); len(left) > 0 {
				return fmt.Errorf("%d processes are left, the first: %+v", len(left), left[0])
			}
			return nil
		})
		if err != nil {
			t.Errorf("after the %s was killed: %v", who, err)
		}
		t.Logf("%s killed: all gone after %s", who, time.Since(begin).Round(time.Millisecond))
	}
}
