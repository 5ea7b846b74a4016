package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// privateEtc covers /etc of this test's mount namespace with a copy that the test
// may change as a host's administrator would.
func privateEtc(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("cp", "-a", "/etc/.", dir).CombinedOutput(); err != nil {
		t.Logf("copy /etc: %v: %s", err, out) // single files may vanish meanwhile
	}
	if err := unix.Mount(dir, "/etc", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/etc", unix.MNT_DETACH) })
}

func writeHost(t *testing.T, text string) {
	t.Helper()
	half := "/etc/resolv.conf.new"
	if err := os.WriteFile(half, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(half, "/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
}

// TestHostReplacesResolvConf: network managers replace the host's file by rename,
// which detaches the mount that covers it in the command's mount namespace. The
// command must keep its own file, with the host's new search list.
func TestHostReplacesResolvConf(t *testing.T) {
	if !asRoot(t) {
		return
	}
	t.Run("plain", func(t *testing.T) { hostReplaces(t) })
	t.Run("copied up", func(t *testing.T) { hostReplaces(t, "--copy-up=/etc") })
}

func hostReplaces(t *testing.T, flags ...string) {
	privateEtc(t)
	writeHost(t, "nameserver 192.0.2.1\nsearch first.example\n")

	args := append([]string{"run"}, flags...)
	cmd := exec.Command("/proc/self/exe", append(args, "--", "sh", "-c",
		`while read x; do cat /etc/resolv.conf | tr '\n' ' '; echo; done`)...)
	cmd.Args[0] = "postern"
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+shortDir(t))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	expect := func(search string) {
		t.Helper()
		want := "nameserver 10.0.2.3 nameserver fd00::3 "
		if search != "" {
			want += "search " + search + " "
		}
		err := eventually(patience, func() error {
			if _, err := in.Write([]byte("\n")); err != nil {
				return err
			}
			line, err := lines.ReadString('\n')
			if err != nil {
				return err
			}
			if strings.TrimSuffix(line, "\n") != want {
				return fmt.Errorf("the command reads %q, want %q", line, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("first.example")
	for n := range 5 {
		search := fmt.Sprintf("n%d.example", n)
		writeHost(t, "nameserver 192.0.2.1\nsearch "+search+"\n")
		expect(search)
	}
	if err := os.Remove("/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	expect("")
	if err := os.Symlink("resolv.real", "/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/resolv.real", []byte("search link.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect("link.example")
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestNoResolvConf: a host without the file, or with a dangling link.
func TestNoResolvConf(t *testing.T) {
	if !asRoot(t) {
		return
	}
	privateEtc(t)
	for _, prepare := range []func() error{
		func() error { return nil },
		func() error { return os.Symlink("/nowhere/at/all", "/etc/resolv.conf") },
	} {
		if err := os.RemoveAll("/etc/resolv.conf"); err != nil {
			t.Fatal(err)
		}
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "run", "--", "cat", "/etc/resolv.conf", "/etc/passwd")
		cmd.Args[0] = "postern"
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+shortDir(t))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "nameserver 10.0.2.3\n") || !strings.Contains(string(out), "root:") {
			t.Errorf("%v: %.300s", err, out)
		}
		if _, err := os.Stat("/etc/resolv.conf"); err == nil {
			t.Error("the host's /etc/resolv.conf was made")
		}
	}
	if left, _ := filepath.Glob("/etc/.ro*"); len(left) > 0 {
		t.Errorf("left in the host's /etc: %v", left)
	}
}
