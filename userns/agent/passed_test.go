package agent

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestSlip: what the agent writes is what the other process reads, through the same open
// file; afterwards the slip says nothing but what went wrong.
func TestSlip(t *testing.T) {
	for _, argv := range [][]string{{"sh"}, {"sh", "", "two words", "\n", ""}, {"", ""}} {
		s, err := newSlip("/bin/sh", argv)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.failure(); err != nil {
			t.Errorf("%q: unread, it is a failure: %v", argv, err)
		}
		path, got, err := s.take()
		if diff := cmp.Diff(argv, got); path != "/bin/sh" || err != nil || diff != "" {
			t.Errorf("take = %q, %v\n%s", path, err, diff)
		}
		if err := s.failure(); err != nil {
			t.Errorf("%q: taken, it is a failure: %v", argv, err)
		}
		if _, _, err := s.take(); err == nil {
			t.Errorf("%q: it can be taken twice", argv)
		}
		s.failed(&fs.PathError{Op: "exec", Path: "/bin/sh", Err: unix.EACCES})
		if err := s.failure(); !errors.Is(err, unix.EACCES) {
			t.Errorf("%q: failure = %v", argv, err)
		}
		s.close()
	}
	var none *slip
	if none.failure() != nil {
		t.Error("no slip is a failure")
	}
	none.close()
}

// TestHandOverByHand: whoever starts the program under the agent's name gets an exit
// code, and nothing is executed.
func TestHandOverByHand(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	stderr := os.Stderr
	os.Stderr = null
	defer func() { os.Stderr = stderr }()
	for _, fds := range []string{"", "x", "0", "-3", "64", "63"} {
		t.Setenv("LISTEN_FDS", fds)
		if code := Main(nil); code != ExitFailed {
			t.Errorf("LISTEN_FDS=%s: exit code %d", fds, code)
		}
	}
}
