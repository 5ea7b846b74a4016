package hostconf

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/postern-net/postern/proto/dns"
)

// patience is how long a change may take to be noticed; below the poll interval,
// so that only inotify can have noticed it.
const patience = pollWatched - time.Second

func write(t *testing.T, path, server string) {
	t.Helper()
	text := ""
	if server != "" {
		text = "nameserver " + server + "\nsearch example.org\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expect waits until the watcher reports exactly this server, "" for none.
func expect(t *testing.T, w *Watcher, server string) {
	t.Helper()
	var want []netip.Addr
	if server != "" {
		want = []netip.Addr{netip.MustParseAddr(server)}
	}
	deadline := time.After(patience)
	var last dns.ResolvConf
	for {
		select {
		case last = <-w.Changes():
			if slices.Equal(last.Nameservers, want) {
				return
			}
		case <-deadline:
			t.Fatalf("no report of server %q; the last was %+v", server, last)
		}
	}
}

func follow(t *testing.T, path string) *Watcher {
	t.Helper()
	conf, err := Read(path)
	do(t, err)
	w := Watch(path, conf)
	t.Cleanup(w.Close)
	return w
}

func TestInPlaceEmptiedDeletedRecreated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, "192.0.2.1")
	w := follow(t, path)
	write(t, path, "192.0.2.2")
	expect(t, w, "192.0.2.2")
	write(t, path, "")
	expect(t, w, "")
	write(t, path, "192.0.2.3")
	expect(t, w, "192.0.2.3")
	do(t, os.Remove(path))
	expect(t, w, "")
	write(t, path, "192.0.2.4")
	expect(t, w, "192.0.2.4")
}

func TestReplacedByRename(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	write(t, path, "192.0.2.1")
	w := follow(t, path)
	for n := 2; n < 6; n++ {
		server := fmt.Sprintf("192.0.2.%d", n)
		write(t, path+".new", server)
		do(t, os.Rename(path+".new", path))
		expect(t, w, server)
	}
}

func TestSymlinkRetargetedAndTargetReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "etc", "resolv.conf")
	for _, d := range []string{"etc", "run", "vpn"} {
		do(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	stub, vpn := filepath.Join(dir, "run", "stub"), filepath.Join(dir, "vpn", "conf")
	write(t, stub, "127.0.0.53")
	write(t, vpn, "192.0.2.9")
	do(t, os.Symlink("../run/stub", path))
	w := follow(t, path)

	write(t, stub+".new", "127.0.0.54") // the target is replaced
	do(t, os.Rename(stub+".new", stub))
	expect(t, w, "127.0.0.54")

	do(t, os.Symlink(vpn, path+".new")) // the link is retargeted
	do(t, os.Rename(path+".new", path))
	expect(t, w, "192.0.2.9")

	write(t, vpn, "192.0.2.10") // the new target is written
	expect(t, w, "192.0.2.10")

	do(t, os.Remove(path)) // the link becomes a file
	write(t, path, "192.0.2.11")
	expect(t, w, "192.0.2.11")
}

func TestTargetDirectoryAppearsLate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	do(t, os.Symlink("run/systemd/resolve/stub", path))
	w := follow(t, path)
	do(t, os.MkdirAll(filepath.Join(dir, "run/systemd/resolve"), 0o755))
	write(t, filepath.Join(dir, "run/systemd/resolve/stub"), "192.0.2.1")
	expect(t, w, "192.0.2.1")
	do(t, os.RemoveAll(filepath.Join(dir, "run")))
	expect(t, w, "")
	do(t, os.MkdirAll(filepath.Join(dir, "run/systemd/resolve"), 0o755))
	write(t, filepath.Join(dir, "run/systemd/resolve/stub"), "192.0.2.2")
	expect(t, w, "192.0.2.2")
}

func TestDirectoryLinkRetargeted(t *testing.T) {
	dir := t.TempDir()
	for n, d := range []string{"a", "b"} {
		do(t, os.Mkdir(filepath.Join(dir, d), 0o755))
		write(t, filepath.Join(dir, d, "conf"), fmt.Sprintf("192.0.2.%d", n+1))
	}
	do(t, os.Symlink("a", filepath.Join(dir, "current")))
	path := filepath.Join(dir, "resolv.conf")
	do(t, os.Symlink("current/conf", path))
	w := follow(t, path)
	do(t, os.Symlink("b", filepath.Join(dir, "next")))
	do(t, os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "current")))
	expect(t, w, "192.0.2.2")
}

// TestSwapStorm is fault H2's 1,000 swaps: the last state is what counts, and
// nothing is reported for a rewrite with the same content.
func TestSwapStorm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, "192.0.2.1")
	w := follow(t, path)
	for n := range 1000 {
		write(t, path+".new", fmt.Sprintf("198.51.100.%d", n%200+1))
		do(t, os.Rename(path+".new", path))
	}
	write(t, path, "192.0.2.77")
	expect(t, w, "192.0.2.77")
	// Replaced and not rewritten, for a truncation in between would be a change.
	write(t, path+".new", "192.0.2.77")
	do(t, os.Rename(path+".new", path))
	select {
	case c := <-w.Changes():
		t.Errorf("an unchanged file was reported: %+v", c)
	case <-time.After(10 * settle):
	}
}

// TestPollOnly is the case of no inotify instances left (user.max_inotify_instances).
func TestPollOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, "192.0.2.1")
	conf, err := Read(path)
	do(t, err)
	w := &Watcher{path: path, last: conf, changes: make(chan dns.ResolvConf, 1), dirty: make(chan struct{}, 1), stop: make(chan struct{})}
	w.following.Add(1)
	go w.follow(10 * time.Millisecond)
	defer w.Close()
	write(t, path, "192.0.2.2")
	expect(t, w, "192.0.2.2")
}

func TestLinkLoop(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	do(t, os.Symlink("b", a))
	do(t, os.Symlink("a", b))
	if dirs := watchedDirs(a); len(dirs) == 0 || dirs[0] != dir {
		t.Errorf("watchedDirs of a loop = %v, want %s first", dirs, dir)
	}
	w := Watch(a, dns.ResolvConf{})
	defer w.Close()
	do(t, os.Remove(a))
	write(t, a, "192.0.2.1")
	expect(t, w, "192.0.2.1")
}
