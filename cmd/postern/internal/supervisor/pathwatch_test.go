package supervisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// never is an interval that no test lives to see the end of: what is noticed was
// an event.
const never = time.Hour

// await fails the test if the path is not found to be gone.
func (w *pathWatch) await(t *testing.T) {
	t.Helper()
	select {
	case <-w.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the path's end was not noticed")
	}
}

// watched makes a file and a watch on path, which leads to it.
func watched(t *testing.T, path, file string, every time.Duration) *pathWatch {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := watchPath(path, every)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// TestPathEvents: without the clock, every way in which a path can come to lead
// elsewhere is noticed, and nothing else.
func TestPathEvents(t *testing.T) {
	for name, end := range map[string]func(dir string) error{
		"unlink":  func(dir string) error { return os.Remove(filepath.Join(dir, "ns")) },
		"move":    func(dir string) error { return os.Rename(filepath.Join(dir, "ns"), filepath.Join(dir, "elsewhere")) },
		"replace": func(dir string) error { return os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "ns")) },
		"moved directory": func(dir string) error {
			return os.Rename(dir, dir+"2")
		},
		"removed directory": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "ns")
			w := watched(t, path, path, never)
			if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			// Another name's end is an event, too.
			if err := os.WriteFile(filepath.Join(dir, "third"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, "third")); err != nil {
				t.Fatal(err)
			}
			select {
			case <-w.gone:
				t.Fatal("gone while it is there")
			case <-time.After(50 * time.Millisecond):
			}
			if err := end(dir); err != nil {
				t.Fatal(err)
			}
			w.await(t)
		})
	}
}

// TestPathLink: the file at the end of a symbolic link is watched as well.
func TestPathLink(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	link, file := filepath.Join(here, "ns"), filepath.Join(there, "ns")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	w := watched(t, link, file, never)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.await(t)
	if _, err := watchPath(link, never); err == nil {
		t.Error("a path that is not there is watched")
	}
}

// TestPathClock: what gives no event, like the end of a process, is noticed by the
// clock.
func TestPathClock(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w, err := watchPath("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/ns/net", pathEvery)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	select {
	case <-w.gone:
		t.Fatal("gone while it is there")
	case <-time.After(2 * pathEvery):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	w.await(t)
}
