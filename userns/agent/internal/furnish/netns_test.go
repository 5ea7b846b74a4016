package furnish

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The main thread is the main goroutine's, as in the agent.
func init() { runtime.LockOSThread() }

// inside reports whether the test runs as root of a user namespace of its own. If
// not, it runs the same test there and reports its outcome as this test's.
func inside(t *testing.T) bool {
	t.Helper()
	const stage = "POSTERN_FURNISH_TEST_STAGE"
	if os.Getenv(stage) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), stage+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a user namespace: %v\n%s", err, out)
	}
	return false
}

// TestNetNS: the namespace is new, is nobody's, has ping open, can be bound to a
// file, and what belongs to our own stays as it was.
func TestNetNS(t *testing.T) {
	if !inside(t) {
		return
	}
	const ping = "/proc/sys/net/ipv4/ping_group_range"
	own, before := netOf(t, "/proc/self/ns/net"), read(t, ping)
	ns, err := NetNS(false)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	made := netOf(t, "/proc/self/fd/"+strconv.Itoa(int(ns.Fd())))
	if made == own {
		t.Fatal("the namespace is our own")
	}
	awaitThreads(t, own)
	if after := read(t, ping); after != before {
		t.Errorf("our own %s is %q, was %q", ping, after, before)
	}
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	house, notices, err := Furnish(Plan{Detached: ns, NetNS: file})
	if err != nil || len(notices) != 0 {
		t.Fatalf("furnish: %v, %v", notices, err)
	}
	defer house.Close()
	if bound := netOf(t, file); bound != made {
		t.Errorf("%s leads to %v, want %v", file, bound, made)
	}
	if err := unix.Unmount(file, 0); err != nil {
		t.Error(err)
	}
}

// awaitThreads waits until every thread of ours is in the namespace own: the one
// that was not ends a moment later than its goroutine.
func awaitThreads(t *testing.T, own fileID) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil || len(threads) == 0 {
			t.Fatalf("list our threads: %v, %v", threads, err)
		}
		astray := 0
		for _, path := range threads {
			var st unix.Stat_t
			if unix.Stat(path, &st) == nil && idOf(&st) != own { // one that has ended is no more
				astray++
			}
		}
		if astray == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d threads of %d are still in another namespace", astray, len(threads))
		}
	}
}

// netOf tells namespaces apart.
func netOf(t *testing.T, path string) fileID {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return idOf(&st)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestUnshareFix: the limit that users meet has its fix in the line.
func TestUnshareFix(t *testing.T) {
	if fix := unshareFix(unix.ENOSPC); !strings.Contains(fix, "max_net_namespaces") {
		t.Errorf("ENOSPC: %q", fix)
	}
	if fix := unshareFix(unix.EPERM); fix != "" {
		t.Errorf("EPERM: %q", fix)
	}
}

// TestHome: the instance's directory is known by any of its files.
func TestHome(t *testing.T) {
	for plan, want := range map[*Plan]string{
		{ResolvConf: "/r/one/resolv.conf"}: "/r/one",
		{NetNS: "/r/two/netns"}:            "/r/two",
		{}:                                 "",
	} {
		if got := plan.home(); got != want {
			t.Errorf("%+v: home %q, want %q", *plan, got, want)
		}
	}
}

// TestResolved: what is put aside is compared by where its path leads.
func TestResolved(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(".", link); err != nil {
		t.Fatal(err)
	}
	if got, want := resolved(link), resolved(dir); got != want {
		t.Errorf("resolved(%s) = %s, want %s", link, got, want)
	}
	if missing := filepath.Join(dir, "missing"); resolved(missing) != missing {
		t.Errorf("resolved(%s) = %s", missing, resolved(missing))
	}
}
