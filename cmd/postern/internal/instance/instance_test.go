package instance

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// private returns a fresh directory with mode 0700; t.TempDir's is 0755 before
// the umask.
func private(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "0", "quiet-heron", "a.b_c-d", strings.Repeat("x", 63), Generate()} {
		if err := CheckName(good); err != nil {
			t.Errorf("CheckName(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", "_a", "A", "a/b", "../x", "a b", "ä", strings.Repeat("x", 64), "a\n", "netns"} {
		if CheckName(bad) == nil {
			t.Errorf("CheckName(%q) = nil, want an error", bad)
		}
	}
}

func TestLife(t *testing.T) {
	root := private(t)
	d, name, err := CreateNamed(root, "one")
	if err != nil {
		t.Fatal(err)
	}
	info := Info{Name: name, PID: os.Getpid(), Endpoint: "tap", Started: time.Now(),
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.100")}, Command: []string{"sleep", strings.Repeat("y", maxCommand)}}
	if err := info.SetChild(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(info); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteResolvConf([]byte("nameserver 10.0.2.3\n")); err != nil {
		t.Fatal(err)
	}
	list, err := List(root)
	if err != nil || len(list) != 1 || list[0].Name != "one" || list[0].Command[1] != "…" {
		t.Fatalf("List = %+v, %v", list, err)
	}
	if err := list[0].CheckChild(); err != nil {
		t.Errorf("CheckChild of ourselves: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "one", "child_pid")); err != nil || string(b) != strconv.Itoa(os.Getpid()) {
		t.Errorf("child_pid = %q, %v", b, err)
	}
	if _, _, err := CreateNamed(root, "one"); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "one") {
		t.Errorf("second instance of the name: %v, want ErrBusy naming it", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Find(root, "one"); !errors.Is(err, ErrNone) {
		t.Errorf("Find after the end: %v, want ErrNone", err)
	}
}

// TestReusedPID is fault L8: a recorded pid that now belongs to another process.
func TestReusedPID(t *testing.T) {
	i := Info{Name: "x"}
	if err := i.SetChild(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	i.ChildStart++
	if i.CheckChild() == nil {
		t.Error("a process with another start time was accepted")
	}
}

func TestStaleIsReused(t *testing.T) {
	root := private(t)
	dir := filepath.Join(root, "old")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lock", "child_pid", "instance.json", "instance.json.new", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, _, err := CreateNamed(root, "old")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if exists(dir) {
		t.Error("stale directory outlived its new owner")
	}
}

func TestListRemovesStaleAndKeepsForeign(t *testing.T) {
	root := private(t)
	for _, name := range []string{"dead", "kept"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(root, "kept", "notes.txt")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := List(root); err != nil || len(list) != 0 {
		t.Fatalf("List = %v, %v", list, err)
	}
	if exists(filepath.Join(root, "dead")) {
		t.Error("stale directory was not removed")
	}
	if !exists(foreign) {
		t.Error("a file that is not ours was removed")
	}
}

// TestDamagedInfo is fault I9: whatever stands in instance.json, List shows the
// living instance.
func TestDamagedInfo(t *testing.T) {
	root := private(t)
	d, _, err := CreateNamed(root, "one")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, content := range []string{"", "{", "null", `{"version":99}`, strings.Repeat("x", maxInfo+1), `{"version":1,"pid":"a"}`} {
		if err := os.WriteFile(d.Path(infoFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := List(root)
		if err != nil || len(list) != 1 || list[0].Name != "one" {
			t.Errorf("with %.20q: List = %+v, %v", content, list, err)
		}
	}
}

// TestPlants is fault S1: links, FIFOs and directories at every name we use.
func TestPlants(t *testing.T) {
	plants := map[string]func(path, victim string) error{
		"symlink":   func(path, victim string) error { return os.Symlink(victim, path) },
		"hardlink":  func(path, victim string) error { return os.Link(victim, path) },
		"fifo":      func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path, _ string) error { return os.Mkdir(path, 0o700) },
	}
	for kind, plant := range plants {
		for _, name := range append([]string{lockFile}, known...) {
			t.Run(kind+"/"+name, func(t *testing.T) {
				root := private(t)
				victim := filepath.Join(root, "victim")
				if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
				dir := filepath.Join(root, "one")
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := plant(filepath.Join(dir, name), victim); err != nil {
					t.Fatal(err)
				}
				d, err := Create(dir)
				if err == nil {
					// Only a stale name of the right type may be cleared away: a hard
					// link is a plain file, and unlinking it leaves the victim alone.
					if kind != "hardlink" {
						t.Errorf("Create succeeded")
					}
					_ = d.WriteResolvConf([]byte("x"))
					_ = d.Publish(Info{Name: "one"})
					_ = d.Close()
				}
				if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
					t.Errorf("victim is now %q, %v", b, err)
				}
			})
		}
	}
}

func TestSymlinkedDirectoryRefused(t *testing.T) {
	root := private(t)
	if err := os.Mkdir(filepath.Join(root, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(root, "one")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := CreateNamed(root, "one"); err == nil {
		t.Error("a symbolic link was taken for the directory")
	}
}

// TestOneWinner is fault L7: of many simultaneous starts exactly one succeeds.
func TestOneWinner(t *testing.T) {
	root := private(t)
	for range 20 {
		var wg sync.WaitGroup
		winners := make(chan *Dir, 100)
		for range 100 {
			wg.Go(func() {
				d, _, err := CreateNamed(root, "one")
				if err == nil {
					winners <- d
				} else if !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(winners)
		n := 0
		for d := range winners {
			n++
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		if n != 1 {
			t.Fatalf("%d winners, want 1", n)
		}
	}
}

// TestHandover closes and takes a name in turns from many goroutines: the lock
// may never be held twice.
func TestHandover(t *testing.T) {
	root := private(t)
	var holding sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				d, _, err := CreateNamed(root, "one")
				if err != nil {
					continue
				}
				if !holding.TryLock() {
					t.Error("two owners at once")
				} else {
					holding.Unlock()
				}
				_ = d.Close()
			}
		})
	}
	wg.Wait()
}

func TestSocketPathTooLong(t *testing.T) {
	long := filepath.Join(private(t), strings.Repeat("d", 100))
	_, err := Create(long)
	if err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("Create(%d bytes) = %v, want an error naming the limit", len(long), err)
	}
}

// TestRoot is fault H9.
func TestRoot(t *testing.T) {
	base := private(t)
	mk := func(name string, mode os.FileMode) string {
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	good, open := mk("good", 0o700), mk("open", 0o777)
	link := filepath.Join(base, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runUser := mk("user", 0o700)
	uid := strconv.Itoa(os.Getuid())
	temp := mk("temp", 0o700)
	fallback := filepath.Join(temp, "postern-"+uid)

	tests := []struct{ name, runtime, want string }{
		{"set", good, filepath.Join(good, "postern")},
		{"unset", "", fallback},
		{"missing", filepath.Join(base, "nowhere"), fallback},
		{"open to others", open, fallback},
		{"symlink", link, fallback},
		{"file", file, fallback},
		{"relative", "run", fallback},
		{"other owner", "/usr", fallback},
	}
	for _, tc := range tests {
		got, err := Places{RuntimeDir: tc.runtime, RunUser: runUser, Temp: temp}.Root()
		if err != nil || got != tc.want {
			t.Errorf("%s: Root = %s, %v; want %s", tc.name, got, err, tc.want)
		}
	}
	if err := os.Mkdir(filepath.Join(runUser, uid), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := (Places{RunUser: runUser, Temp: temp}).Root(); err != nil || got != filepath.Join(runUser, uid, "postern") {
		t.Errorf("with /run/user/UID: Root = %s, %v", got, err)
	}
	if err := os.Chmod(fallback, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := (Places{RunUser: base, Temp: temp}).Root(); err == nil {
		t.Errorf("a directory open to others was accepted: %s", got)
	}
}

func TestStartTime(t *testing.T) {
	stat := "12 (a) b (c)) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2"
	if got, err := parseStartTime(stat); err != nil || got != 98765 {
		t.Errorf("parseStartTime = %d, %v", got, err)
	}
	for _, bad := range []string{"", ")", "1 (x) S 1", "1 x"} {
		if _, err := parseStartTime(bad); err == nil {
			t.Errorf("parseStartTime(%q) succeeded", bad)
		}
	}
}

func TestReadOnlyAndFull(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if err := explain("write x", errno); !strings.Contains(err.Error(), "--state-dir") || !errors.Is(err, errno) {
			t.Errorf("explain(%v) = %v", errno, err)
		}
	}
}
