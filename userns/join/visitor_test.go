package join

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// visitor is a child that has entered the target and stays there until the test
// ends.
func visitor(t *testing.T, target *Target) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var s rawfork.Script
	target.enter(&s)
	s.Call("tell that we are in", unix.SYS_WRITE, rawfork.Int(int(w.Fd())), s.Bytes([]byte("!")), rawfork.Int(1))
	s.Wait()
	pid := stay(t, &s, 0)
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return pid
}

// cloned is a child in a new user and network namespace whose id maps nobody has
// written.
func cloned(t *testing.T) int {
	t.Helper()
	var s rawfork.Script
	s.DieWithParent(unix.SIGKILL)
	s.Wait()
	return stay(t, &s, unix.CLONE_NEWUSER|unix.CLONE_NEWNET)
}

// stay forks a script that ends with a wait.
func stay(t *testing.T, s *rawfork.Script, flags uintptr) int {
	t.Helper()
	child, err := s.Fork(flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Kill() })
	return child.PID
}
