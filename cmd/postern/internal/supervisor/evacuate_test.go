package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCgroup2Of(t *testing.T) {
	for text, want := range map[string]string{
		"0::/user.slice/a b\n":                   "/user.slice/a b",
		"12:memory:/x\n1:name=systemd:/\n0::/\n": "/",
		"12:memory:/x\n":                         "",
		"10::/x\n":                               "",
		"":                                       "",
	} {
		if got, found := cgroup2Of([]byte(text)); got != want || found != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, found, want)
		}
	}
}

func TestMountedAt(t *testing.T) {
	const (
		hybrid = "30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
			"31 30 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n" +
			"40 30 0:35 / /sys/fs/cgroup/unified rw,relatime shared:10 master:3 - cgroup2 cgroup2 rw\n"
		part    = "40 30 0:35 /user.slice/one /run/my\\040cgroup rw - cgroup2 cgroup2 rw\n"
		outside = "40 30 0:35 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	)
	for _, tc := range []struct{ name, mounts, group, want string }{
		{"hybrid", hybrid, "/user.slice/one", "/sys/fs/cgroup/unified/user.slice/one"},
		{"the root", hybrid, "/", "/sys/fs/cgroup/unified"},
		{"a part", part, "/user.slice/one/two", "/run/my cgroup/two"},
		{"the part itself", part, "/user.slice/one", "/run/my cgroup"},
		{"beside the part", part, "/user.slice/onetwo", ""},
		{"another part", part, "/system.slice", ""},
		{"the whole of the part's tree", part + hybrid, "/system.slice", "/sys/fs/cgroup/unified/system.slice"},
		{"outside of the namespace", outside, "/one", ""},
		{"version 1 only", "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw\n", "/", ""},
		{"short lines", "1 2 - cgroup2\n\n- cgroup2\n1 2 3 / /x rw -\n", "/", ""},
	} {
		got, found := mountedAt([]byte(tc.mounts), tc.group)
		if got != tc.want || found != (tc.want != "") {
			t.Errorf("%s: %q, %v; want %q", tc.name, got, found, tc.want)
		}
	}
}

// TestOwnCgroupMissing: where it cannot work, one line says what would help.
func TestOwnCgroupMissing(t *testing.T) {
	dir := t.TempDir()
	cgroup, mounts := filepath.Join(dir, "cgroup"), filepath.Join(dir, "mountinfo")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(mounts, "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw\n")
	put(cgroup, "12:memory:/x\n")
	if _, err := ownCgroup(cgroup, mounts); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("without version 2: %v", err)
	}
	put(cgroup, "0::/x\n")
	if _, err := ownCgroup(cgroup, mounts); err == nil || !strings.Contains(err.Error(), cgroupFix) {
		t.Errorf("not mounted: %v", err)
	}
}

// TestMoveAllEnds: processes that come as fast as they are moved do not hold us.
func TestMoveAllEnds(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for dir, text := range map[string]string{from: "0\n7\n8\n", to: ""} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := moveAll(from, to); err != nil {
		t.Error(err)
	}
	if pids, err := cgroupProcs(from); err != nil || len(pids) != 2 {
		t.Errorf("%v, %v: want the two that have a number here", pids, err)
	}
	if err := moveAll(from, filepath.Join(to, "missing")); err == nil || !strings.Contains(err.Error(), "process 8") {
		t.Errorf("none could be moved: %v", err)
	}
}
