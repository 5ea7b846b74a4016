package instance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// taken takes a directory over, makes it an instance's and closes that.
func taken(t *testing.T, path string) {
	t.Helper()
	if err := Takeover(path); err != nil {
		t.Fatal(err)
	}
	d, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&0o7777 != 0o700 {
		t.Errorf("%s has mode %04o, %v; want 0700", path, st.Mode&0o7777, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// crashed makes a state directory as a RootlessKit that was killed leaves it.
func crashed(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"child_pid", "resolv.conf", "hosts", "netns"} {
		if err := os.WriteFile(filepath.Join(path, name), []byte("1"), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(path, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api.sock", ".s4nn.sock", ".bp.sock"} {
		if err := unix.Mknod(filepath.Join(path, name), unix.S_IFSOCK|0o755, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(path, ".bp-ready.pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTakeover(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "a", "b")
	dead := crashed(t)
	empty := t.TempDir()
	for what, path := range map[string]string{"missing": missing, "dead": dead, "empty": empty} {
		taken(t, path)
		if exists(path) {
			t.Errorf("%s: %s is left", what, path)
		}
	}
	if !exists(filepath.Dir(missing)) {
		t.Error("the parents are gone")
	}
}

// TestTakeoverKeepsForeign: RootlessKit would delete it.
func TestTakeoverKeepsForeign(t *testing.T) {
	path := crashed(t)
	mine := filepath.Join(path, "mine")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Takeover(path)
	if err == nil || !strings.Contains(err.Error(), `open to others (mode 0755) and holds "mine", which is not ours`) {
		t.Errorf("Takeover = %v", err)
	}
	if !exists(filepath.Join(path, "child_pid")) {
		t.Error("a directory that is refused is changed")
	}
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	taken(t, path)
	if left, err := os.ReadDir(path); err != nil || len(left) != 1 || left[0].Name() != "mine" {
		t.Errorf("left is %v, %v; want mine", left, err)
	}
}

func TestTakeoverRefuses(t *testing.T) {
	path := filepath.Join(private(t), "s")
	if err := Takeover(path); err != nil {
		t.Fatal(err)
	}
	d, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Takeover(path); !errors.Is(err, ErrBusy) {
		t.Errorf("Takeover of a living one's = %v, want %v", err, ErrBusy)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	// Not of the type that RootlessKit makes.
	odd := crashed(t)
	planted := filepath.Join(odd, ".bp.sock")
	if err := errors.Join(os.Remove(planted), os.Mkdir(planted, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := Takeover(odd); err == nil || !strings.Contains(err.Error(), ".bp.sock: it is not of our making") {
		t.Errorf("Takeover with a directory for a socket = %v", err)
	}

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, file} {
		if err := Takeover(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Takeover(%s) = %v, want an error about its type", path, err)
		}
	}
}
