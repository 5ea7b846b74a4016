// Package usertest runs tests as an ordinary user. What this project promises it
// promises to users without privileges; a test that runs as root shows nothing
// about them.
//
// Run by root, AsUser executes the test binary once more as an ordinary user who
// has subordinate ids, with only the calling test selected; run by an ordinary
// user, it lets the test go on right away.
package usertest

import (
	"bufio"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// AsUser reports whether the test shall go on: we are an ordinary user. Otherwise
// the test has been run by one, and its result is t's already. The environment
// gets env on top.
func AsUser(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return true
	}
	cmd := Command(t, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(cmd.Env, env...)
	runtime.LockOSThread() // the parent-death signal follows the thread
	out, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	if err != nil {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	} else if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		Missing(t, "as an ordinary user the test did not pass:\n%s", out)
	}
	return false
}

// Command is the test binary as an ordinary user, to be run by root.
func Command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	u := ordinary(t)
	uid, gid := number(t, u.Uid), number(t, u.Gid)
	cmd := exec.Command(publicCopy(t), args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME="+u.HomeDir, "USER="+u.Username, "LOGNAME="+u.Username, "TMPDIR=/tmp", "GOCOVERDIR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{gid}},
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd
}

// Missing skips the test on a user's machine and fails it in CI, where everything
// has to be there.
func Missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// ordinary is a user of this machine, not root, who has subordinate ids.
func ordinary(t *testing.T) *user.User {
	t.Helper()
	f, err := os.Open("/etc/subuid")
	if err == nil {
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			name, _, _ := strings.Cut(sc.Text(), ":")
			if u, err := user.Lookup(name); err == nil && u.Uid != "0" {
				return u
			}
		}
	}
	Missing(t, "no ordinary user with subordinate ids: useradd --add-subids-for-system ci")
	return nil
}

func number(t *testing.T, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// publicCopy copies the test binary to where every user may execute it: go test
// builds it in a directory that only its own user may enter.
func publicCopy(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "postern-usertest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "test")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
