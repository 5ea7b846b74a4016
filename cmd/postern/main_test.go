package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/engineproc"
	"github.com/postern-net/postern/cmd/postern/internal/netnskeep"
	"github.com/postern-net/postern/userns/agent"
)

// How the tests come to run as an ordinary user on a "host" of their own:
//
//	go test (root)  →  stage "enter": new network and mount namespace, loopback up,
//	                   a /dev/net/tun that users may open
//	                →  stage "user": the ordinary user; the test itself runs here
//
// Run by an ordinary user, the tests run directly. Environment variables carry the
// stage; the program under test never sees them.
const (
	stageVariable = "POSTERN_TEST_STAGE"
	rootVariable  = "POSTERN_TEST_ROOT" // the "user" stage stays root
	testUser      = "ci"
)

func TestMain(m *testing.M) {
	if os.Getenv(stageVariable) == "enter" {
		if err := enterStage(); err != nil {
			fmt.Fprintln(os.Stderr, "enter the test's namespaces:", err)
			os.Exit(1)
		}
	}
	testscript.Main(m, map[string]func(){
		"postern":       main,
		engineproc.Name: main,
		agent.Name:      main,
		netnskeep.Name:  main,
		"slirp4netns":   main,
		"rootlesskit":   main,
		"resolve":       resolveMain,
		"fetch":         fetchMain,
		"listen":        listenMain,
		"activate":      activateMain,
		"activated":     activatedMain,
		"ask":           askMain,
		"withtap":       withTAPMain,
		"machine":       machineMain,
	})
}

// resolveMain prints the addresses of its arguments, asked of the name server in
// /etc/resolv.conf, or at ADDR after an argument @ADDR: a small client of the whole
// way through the engine.
func resolveMain() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r := &net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		if server, ok := strings.CutPrefix(name, "@"); ok {
			r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(server, "53"))
			}
			continue
		}
		addrs, err := r.LookupHost(ctx, name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(name, strings.Join(addrs, " "))
	}
}

// enterStage arranges the namespaces that this process was started in and goes on
// as the ordinary user. It returns only on failure.
func enterStage() error {
	runtime.LockOSThread()
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := openTUN(); err != nil {
		return err
	}
	if err := os.Setenv(stageVariable, "user"); err != nil {
		return err
	}
	if os.Getenv(rootVariable) != "" {
		return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	uid, gid, home, err := ordinaryUser()
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return err
	}
	if err := errors.Join(os.Setenv("HOME", home), os.Setenv("USER", testUser)); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// openTUN covers /dev/net/tun, in this mount namespace, with a node that everybody
// may open, as udev makes it on a desktop.
func openTUN() error {
	dir, err := os.MkdirTemp("", "tun")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	node := filepath.Join(dir, "tun")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return err
	}
	if err := os.Chmod(node, 0o666); err != nil {
		return err
	}
	return unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, "")
}

func ordinaryUser() (uid, gid int, home string, err error) {
	u, err := user.Lookup(testUser)
	if err != nil {
		if os.Getenv("CI") == "true" {
			return 0, 0, "", err
		}
		return 65534, 65534, "/", nil
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, u.HomeDir, err
}

// asUser reports whether the test runs as an ordinary user. If not, it runs the
// same test as one in another process and reports its outcome as this test's.
func asUser(t *testing.T) bool {
	if os.Getuid() != 0 || os.Getenv(stageVariable) == "user" {
		return true
	}
	rerun(t)
	return false
}

// asRoot reports whether the test runs as root on a host of its own.
func asRoot(t *testing.T) bool {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if os.Getenv(stageVariable) == "user" {
		return true
	}
	rerun(t, rootVariable+"=1")
	return false
}

// rerun runs the calling test in the next stage. What the ordinary user has to
// read, the test's program and data, is copied to where that is possible.
func rerun(t *testing.T, env ...string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "postern.test")
	if err := errors.Join(os.Chmod(dir, 0o755), copyFile(program, "/proc/self/exe", 0o755),
		os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS("testdata"))); err != nil {
		t.Fatal(err)
	}
	if err := readable(filepath.Join(dir, "testdata")); err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.timeout=5m"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), stageVariable+"=enter", "GORACE=atexit_sleep_ms=0"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // the parent-death signal follows the thread
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as ordinary user: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
}

// readable lets everybody read a tree, whatever the umask was.
func readable(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	})
}

func copyFile(to, from string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, b, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}
