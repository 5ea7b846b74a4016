package slirpapi

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Stages of the test binary: it starts itself to run one test as somebody else or
// somewhere else.
const (
	stageVariable = "POSTERN_SLIRPAPI_STAGE"
	// stageUser has root's rights and is to become "UID:GID" with a /dev/net/tun that
	// users may open, as udev makes it on a desktop.
	stageUser = "user:"
	// stageInside is in user and network namespaces of the test.
	stageInside = "inside"
)

func TestMain(m *testing.M) {
	if ids, ok := strings.CutPrefix(os.Getenv(stageVariable), stageUser); ok {
		fmt.Fprintln(os.Stderr, "become an ordinary user:", becomeUser(ids)) // returns with an error only
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// becomeUser goes on as a user in this mount namespace.
func becomeUser(ids string) error {
	var uid, gid int
	if _, err := fmt.Sscanf(ids, "%d:%d", &uid, &gid); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := coverTUN(); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid), os.Unsetenv(stageVariable)); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// coverTUN puts a device that everybody may open over /dev/net. Where there is none
// to begin with, those who need it say so.
func coverTUN() error {
	if _, err := os.Stat("/dev/net"); err != nil {
		return nil
	}
	if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount over /dev/net: %w", err)
	}
	err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))
	return errors.Join(err, os.Chmod("/dev/net/tun", 0o666))
}

// missing skips the test on a user's machine and fails it in CI, where everything
// has to be there.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// asUser has root run the calling test once more as an ordinary user.
func asUser(t *testing.T) {
	t.Helper()
	name := os.Getenv("POSTERN_TEST_USER")
	if name == "" {
		name = "ci"
	}
	u, err := user.Lookup(name)
	if err != nil {
		missing(t, "%v (sh .ci/setup makes it; POSTERN_TEST_USER names another)", err)
	}
	again(t, publicCopy(t), stageUser+u.Uid+":"+u.Gid, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS})
}

// inside runs the calling test once more in user and network namespaces of its own,
// where it is root and nothing that it does reaches the machine.
func inside(t *testing.T) {
	t.Helper()
	again(t, "/proc/self/exe", stageInside, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
}

// again runs the calling test in another stage and makes its result t's.
func again(t *testing.T, program, stage string, attr *syscall.SysProcAttr) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.Command(program, "-test.run=^"+name+"$", "-test.v", "-test.timeout=3m")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), stageVariable+"="+stage, "HOME=/", "TMPDIR=/tmp", "GOCOVERDIR=")
	attr.Pdeathsig = unix.SIGKILL
	cmd.SysProcAttr = attr
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && cmd.Process == nil:
		missing(t, "start the test in new namespaces: %v", err)
	case err != nil:
		t.Errorf("%s: %v\n%s", stage, err, out)
	case !strings.Contains(string(out), "\n--- PASS: "+name):
		missing(t, "%s: the test did not pass\n%s", stage, out)
	default:
		t.Logf("%s:\n%s", stage, out)
	}
}

// publicCopy copies the test binary to where every user may execute it: go test
// builds it in a directory that only its own user may enter.
func publicCopy(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "postern-slirpapi-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, b, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// loopbackUp brings up the loopback interface of this network namespace.
func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}
