package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	// mark stands in the command line of everything that it started.
	mark string
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
		shells := 0
		for _, p := range s.left() {
			if strings.HasPrefix(p.command, "sh -c") {
				shells++
			}
		}
		if shells < 3 {
			return fmt.Errorf("%d shells so far", shells)
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
		victim := map[string]int{"supervisor": s.info.PID, "agent": s.info.ChildPID}[who]
		for _, p := range s.left() {
			if who == "command" && p.parent == s.info.ChildPID && strings.Contains(p.command, "sleep 1022") {
				victim = p.pid
			}
		}
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
