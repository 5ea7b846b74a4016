package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/slirpcli"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/stack/stacktest/guest"
)

// askMain sends its second argument to the unix socket that is its first, ends its
// side and prints the answer.
func askMain() {
	if err := ask(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ask(path, question string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

// withTAPMain makes a TAP, leaves it open as descriptor 9 and becomes the program of
// its further arguments: withtap NAME PROGRAM [ARG...]
func withTAPMain() {
	if err := withTAP(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func withTAP(name string, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	fd, err := openTAP(name)
	if err != nil {
		return err
	}
	if err := unix.Dup3(fd, 9, 0); err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}

// openTAP makes a TAP in the network namespace of its caller.
func openTAP(name string) (fd int, err error) {
	if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// machineMain plays a virtual machine with the kernel of the network namespace that it
// is started in: it makes a TAP and carries its frames to and from a socket, until that
// is closed: machine NAME SOCKET
func machineMain() {
	if err := machine(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func machine(name, socket string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	f, err := conn.File()
	if err != nil {
		return err
	}
	_ = conn.Close()
	tap, err := openTAP(name)
	if err != nil {
		return err
	}
	wait, _, err := guest.Pump(os.NewFile(uintptr(tap), name), f)
	if err != nil {
		return err
	}
	_ = f.Close()
	wait()
	return nil
}

func TestAsCalled(t *testing.T) {
	for _, c := range []struct{ argv, want string }{
		{"postern run -- true", "run -- true"},
		{"/usr/bin/postern", ""},
		{"slirp4netns --help", "slirp4netns --help"},
		{"/opt/x/slirp4netns -c 1 tap0", "slirp4netns -c 1 tap0"},
		{"/usr/bin/slirp4netns-postern -c 1 tap0", "slirp4netns -c 1 tap0"},
		{"./slirp4netns-other run", "run"},
		{"slirp4netns/postern ps", "ps"},
		{"postern slirp4netns -h", "slirp4netns -h"},
		{"", ""},
	} {
		if got := asCalled(strings.Fields(c.argv)); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %q, want %s", c.argv, got, c.want)
		}
	}
}

// TestPersonalityRaw: a personality sees its words as they came, those of postern's
// own command line too.
func TestPersonalityRaw(t *testing.T) {
	for _, args := range [][]string{{"slirp4netns", "--help"}, {"slirp4netns", "-c", "-h"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		code := run(t.Context(), args, nil, stdio{nil, w, w})
		w.Close()
		out, err := io.ReadAll(r)
		r.Close()
		if code != 0 || err != nil || string(out) != slirpcli.Help {
			t.Errorf("%q: exit code %d, %v\n%s", args, code, err, out)
		}
	}
}

func TestAdopt(t *testing.T) {
	r, w, err := os.Pipe() // close-on-exec: of our own making
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if f, err := adopt("--ready-fd", int(w.Fd())); err == nil {
		t.Errorf("adopted %s, which did not come from outside", f.Name())
	}
	if f, err := adopt("--ready-fd", 1<<20); err == nil {
		t.Errorf("adopted %s, which is not open", f.Name())
	}
	fd, err := unix.Dup(int(w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f, err := adopt("--ready-fd", fd)
	if err != nil {
		t.Fatal(err)
	}
	if int(f.Fd()) != fd {
		t.Errorf("descriptor %d, want %d itself", f.Fd(), fd)
	}
	f.Close()
}

// TestPlaceInstance: below the runtime directory where there is a usable one.
func TestPlaceInstance(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := &app{env: []string{"XDG_RUNTIME_DIR=" + dir}}
	var cfg supervisor.Config
	remove, err := a.placeInstance(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.StateDir != "" || cfg.RuntimeDir != dir {
		t.Errorf("state directory %q, runtime directory %q", cfg.StateDir, cfg.RuntimeDir)
	}
	if err := remove(); err != nil {
		t.Error(err)
	}
}

// TestSweep: of the directories of killed instances nothing is left, others stay.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * sweepAge)
	make := func(name string) string {
		path := filepath.Join(dir, strings.Replace(temporaryPattern, "*", name, 1))
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "resolv.conf"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	dead, living, young, strange := make("1"), make("2"), make("3"), make("4")
	d, err := instance.Create(living)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.WriteFile(filepath.Join(strange, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, living, strange} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweep(filepath.Join(dir, temporaryPattern))
	for path, want := range map[string]bool{
		dead: false, living: true, young: true, filepath.Join(strange, "precious"): true,
	} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %t", path, err, want)
		}
	}
}
