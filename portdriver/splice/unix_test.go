package splice

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/stacktest"
)

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "splice")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openRoot(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { f.Close() })
	return f
}

func listenUnix(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// greeter is a unix server that says its name and echoes.
func greeter(t *testing.T, path, greeting string) {
	t.Helper()
	l := listenUnix(t, path)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting+"\n")
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// greeting is what a client of a published port is told, or the error.
func greeting(t *testing.T, port netip.AddrPort) (string, error) {
	t.Helper()
	cl, err := tryDial("", port)
	if err != nil {
		return "", err
	}
	defer cl.Close()
	b, err := io.ReadAll(cl.r)
	return strings.TrimSpace(string(b)), err
}

// TestUnixTarget: what a process in the container would find under a path is
// connected to, and nothing else.
func TestUnixTarget(t *testing.T) {
	base := shortDir(t)
	outside, inside := filepath.Join(base, "host"), filepath.Join(base, "root")
	link := func(target, at string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, func(c *Config) {
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		c.Root = openRoot(t, inside)
	})
	greeter(t, outside+"/app.sock", "host")
	greeter(t, outside+"/only.sock", "host")
	greeter(t, inside+"/run/real.sock", "container")
	greeter(t, inside+outside+"/app.sock", "shadow") // what the host's path means in the container
	link(outside+"/app.sock", inside+"/run/absolute.sock")
	link(outside+"/only.sock", inside+"/run/escape.sock")
	link("../../../../../../../.."+outside+"/only.sock", inside+"/run/dots.sock")
	link(outside, inside+"/dir")
	link("real.sock", inside+"/run/relative.sock")
	link("loop.sock", inside+"/run/loop.sock")
	link("/proc/self/root"+outside+"/only.sock", inside+"/run/magic.sock")
	if err := os.WriteFile(inside+"/run/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, want string // "" for a reset
	}{
		{"/run/real.sock", "container"},
		{"run/real.sock", "container"},
		{"/run/relative.sock", "container"},
		{"/../../run/real.sock", "container"},
		{"/run/absolute.sock", "shadow"},
		{"/dir/app.sock", "shadow"},
		{"/run/escape.sock", ""},
		{"/run/dots.sock", ""},
		{"/dir/only.sock", ""},
		{"/run/loop.sock", ""},
		{"/run/magic.sock", ""},
		{"/run/file", ""},
		{"/run", ""},
		{"/missing", ""},
	} {
		port := w.publish(portdriver.Listener{TargetPath: c.path}, "127.0.0.1")
		got, err := greeting(t, port)
		if c.want == "" && !errors.Is(err, syscall.ECONNRESET) || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.path, got, err, c.want)
		}
	}
	w.counted(portdriver.RefusedTarget, 8)
}

// TestMagicLinkOfTheContainer: a root that has the kernel's own links in it, as each
// with a /proc does, is not left through them.
func TestMagicLinkOfTheContainer(t *testing.T) {
	base := shortDir(t)
	greeter(t, base+"/host.sock", "host")
	root := openRoot(t, "/")
	if _, err := os.Stat("/proc/self/root" + base + "/host.sock"); err != nil {
		t.Fatal(err)
	}
	if fd, err := openSocket(root, "/proc/self/root"+base+"/host.sock"); !errors.Is(err, unix.ELOOP) {
		unix.Close(fd)
		t.Errorf("got %v, want ELOOP", err)
	}
	fd, err := openSocket(root, base+"/host.sock")
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// TestUnixListener: clients that come over a unix socket have no address to show, so
// they show what those on loopback do.
func TestUnixListener(t *testing.T) {
	w := newWorld(t, nil)
	path := shortDir(t) + "/in.sock"
	l := listenUnix(t, path)
	err := w.Open(portdriver.Listener{Rule: 3, Network: portdriver.NetUnix, Target: server(t, container4), Proxy: 0, File: fileOf(t, l)})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a port of its own for each
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		cl := newClient(c)
		if seen := netip.MustParseAddrPort(cl.seen(t)); seen.Addr() != loopback4 || seen.Port() == 0 {
			t.Errorf("the server sees %v", seen)
		}
		cl.talk(t, []byte("hello"))
	}
	w.counted(portdriver.OtherSource, 0)
	for _, f := range w.Flows(2) {
		if f.Rule != 3 || f.Client.IsValid() || f.Source.Addr() != loopback4 || f.Source.Port() == 0 {
			t.Errorf("flow %+v", f)
		}
	}
}

// TestReverse: the container's processes reach a unix socket of the host.
func TestReverse(t *testing.T) {
	w := newWorld(t, nil)
	path := shortDir(t) + "/host.sock"
	greeter(t, path, "host")
	port := w.publish(portdriver.Listener{TargetPath: path, Reverse: true}, "127.0.0.10")
	if got, err := greeting(t, port); got != "host" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// A unix socket's peer learns of a refusal by the end of the stream.
	in := listenUnix(t, shortDir(t)+"/in.sock")
	err := w.Open(portdriver.Listener{Network: portdriver.NetUnix, TargetPath: path, Reverse: true, File: fileOf(t, in)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", in.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", b, err)
	}
	w.counted(portdriver.RefusedTarget, 1)
}

// TestUnixBacklog: connect(2) does not wait for a unix server with a full backlog.
func TestUnixBacklog(t *testing.T) {
	w := newWorld(t, nil)
	path := shortDir(t) + "/host.sock"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	port := w.publish(portdriver.Listener{TargetPath: path, Reverse: true}, "127.0.0.1")
	const clients = 10
	for range clients {
		dial(t, "", port)
	}
	stacktest.Eventually(t, "clients to wait", func() bool { return w.pending.Load() > 0 && w.Status().TCP == clients })
	for range clients {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
	}
	stacktest.Eventually(t, "nobody to wait", func() bool { return w.pending.Load() == 0 })
	w.counted(portdriver.RefusedTarget, 0)
}

// TestListenerIsShutDown: whoever has a copy of a listener, such as the container's
// root of one there, can end it. That neither ends nor occupies the loop.
func TestListenerIsShutDown(t *testing.T) {
	w := newWorld(t, nil)
	l := listenTCP(t, "127.0.0.1:0")
	twin := fileOf(t, l)
	defer twin.Close()
	w.serve(portdriver.Listener{Rule: 1, Target: netip.MustParseAddrPort("127.0.0.10:9")}, l)
	if err := unix.Shutdown(int(twin.Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "the listener to rest", func() bool { return w.waiters.n.Load() == 1 })
	other := w.publish(portdriver.Listener{Rule: 2, Target: server(t, container4)}, "127.0.0.1")
	dial(t, "", other).talk2(t)
	w.Shut(1)
}
