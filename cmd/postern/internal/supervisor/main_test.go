package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/engineproc"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
)

// Tests with processes run in a user and network namespace of their own, which plays
// the host. Containers are further network namespaces of that user namespace, so that
// the caller is its owner's root, as Podman's helpers are.

// sessionName is the argv[0] of a session that a test starts.
const sessionName = "postern-test-session"

func init() {
	if os.Args[0] == sessionName {
		runtime.LockOSThread() // Attach is for the main thread
	}
}

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case engineproc.Name:
		os.Exit(engineproc.Main())
	case sessionName:
		os.Exit(sessionMain())
	}
	os.Exit(nstest.Main(m))
}

// order is what a session is to be like, for its standard input.
type order struct {
	NetNS  string
	TAP    bool // the descriptor after the others
	Guest  string
	Config Config
}

// Descriptors of a session.
const (
	readyFD = 3 + iota
	exitFD
	tapFD
)

// sessionMain is a session's process.
func sessionMain() int {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	cfg := AttachConfig{Config: o.Config, NetNS: o.NetNS}
	cfg.Stdin, cfg.Stdout, cfg.Stderr = os.Stdin, os.Stdout, os.Stderr
	cfg.ReadyFD, cfg.ExitFD = os.NewFile(readyFD, "ready"), os.NewFile(exitFD, "exit")
	if o.TAP {
		cfg.TAP = os.NewFile(tapFD, "tap")
	}
	if o.Guest != "" {
		var err error
		if cfg.Guest, err = ListenGuest(o.Guest); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 98
		}
	}
	code, err := Attach(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "postern:", err)
	}
	return code
}

// live is a running session.
type live struct {
	cmd    *exec.Cmd
	dir    string
	exit   *os.File // closing it is the end of ExitFD's other side
	ready  *os.File
	stderr *lockedBuffer
	done   bool
}

// lockedBuffer is written by a process and read by a test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// baseConfig is what the tests' sessions have in common.
func baseConfig(t *testing.T) Config {
	return Config{
		StateDir: filepath.Join(t.TempDir(), "state"), Plan: netplan.Default(), MTU: 65520, IfName: "tap0",
		Endpoint: EndpointAuto, Configure: true, TCP: TCPAuto, PortDriver: PortDriverAuto,
	}
}

// begin starts a session and does not wait for it.
func begin(t *testing.T, o order, tap *os.File) *live {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	l := &live{dir: o.Config.StateDir, stderr: &lockedBuffer{}}
	ready, theirReady := pipe(t)
	theirExit, exit := pipe(t)
	l.ready, l.exit = ready, exit
	l.cmd = exec.Command("/proc/self/exe")
	l.cmd.Args = []string{sessionName}
	l.cmd.Stdin, l.cmd.Stderr = bytes.NewReader(text), l.stderr
	l.cmd.ExtraFiles = []*os.File{theirReady, theirExit}
	if tap != nil {
		l.cmd.ExtraFiles = append(l.cmd.ExtraFiles, tap)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirReady.Close()
	theirExit.Close()
	t.Cleanup(func() {
		if !l.done {
			_ = l.cmd.Process.Kill()
			_ = l.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("session:\n%s", l.stderr)
		}
	})
	return l
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// start is begin, and waits until the session is ready.
func start(t *testing.T, o order, tap *os.File) *live {
	t.Helper()
	l := begin(t, o, tap)
	l.awaitReady(t)
	return l
}

func (l *live) awaitReady(t *testing.T) {
	t.Helper()
	_ = l.ready.SetReadDeadline(time.Now().Add(2 * stacktest.Patience))
	b, err := io.ReadAll(l.ready)
	if err != nil || string(b) != "1" {
		t.Fatalf("--ready-fd got %q, %v\n%s", b, err, l.stderr)
	}
}

// wait waits for the end and returns the exit code.
func (l *live) wait(t *testing.T) int {
	t.Helper()
	timer := time.AfterFunc(2*stacktest.Patience, func() { _ = l.cmd.Process.Kill() })
	defer timer.Stop()
	err := l.cmd.Wait()
	l.done = true
	if status, ok := l.cmd.ProcessState.Sys().(syscall.WaitStatus); err != nil && (!ok || status.Signaled()) {
		t.Fatalf("the session's end: %v\n%s", err, l.stderr)
	}
	return l.cmd.ProcessState.ExitCode()
}

// leave ends the session by its ExitFD.
func (l *live) leave(t *testing.T) {
	t.Helper()
	l.exit.Close()
	if code := l.wait(t); code != ExitOK {
		t.Errorf("exit code %d after the end of --exit-fd, want %d", code, ExitOK)
	}
}

// status asks the control socket.
func (l *live) status(t *testing.T) (s apisock.Status) {
	t.Helper()
	client := http.Client{Timeout: stacktest.Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(l.dir, "api.sock"))
		},
	}}
	resp, err := client.Get("http://instance/v1/postern/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// missing ends a test for which the machine is not equipped. Where everything was set
// up that is a failure.
func missing(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// The host's addresses.
var host4, host6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")

var arrangeHost = sync.OnceValue(func() error {
	return errors.Join(nstest.AddAddr("lo", netip.PrefixFrom(host4, 32)), nstest.AddAddr("lo", netip.PrefixFrom(host6, 128)))
})

// box is a container: a network namespace, and the path to it.
type box struct {
	*nstest.Namespace
	path string
}

func newBox(t *testing.T) *box {
	t.Helper()
	if err := arrangeHost(); err != nil {
		t.Fatal(err)
	}
	b := &box{Namespace: nstest.New(t)}
	b.Do(t, func() error {
		b.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		return nil
	})
	return b
}

// dial connects a socket of the container.
func (b *box) dial(t *testing.T, network string, to netip.AddrPort) (conn net.Conn, err error) {
	t.Helper()
	b.Do(t, func() error {
		conn, err = net.DialTimeout(network, to.String(), stacktest.Patience)
		return nil
	})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(stacktest.Patience))
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// reaches checks that the container can talk to the host, and gives the container's
// address as its socket has it.
func (b *box) reaches(t *testing.T, host netip.Addr) netip.Addr {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			defer conn.Close()
			_, _ = io.Copy(struct{ io.Writer }{conn}, conn)
		}
	}()
	conn, err := b.dial(t, "tcp", l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	sent := []byte(strings.Repeat("0123456789abcdef", 1<<14))
	go func() { _, _ = conn.Write(sent) }() // the reader notices what is missing
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes by %s did not come back whole: %v", len(sent), host, err)
	}
	return conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
}

// mac is the interface's hardware address; false if there is no such interface.
func (b *box) mac(t *testing.T, name string) (mac [6]byte, ok bool) {
	t.Helper()
	b.Do(t, func() error {
		if i, err := net.InterfaceByName(name); err == nil {
			mac, ok = [6]byte(i.HardwareAddr), true
		}
		return nil
	})
	return mac, ok
}

// tap makes a TAP as ip-tuntap(8) does, without a vnet header unless asked for, and
// sets it up.
func (b *box) tap(t *testing.T, name string, vnet bool) *os.File {
	t.Helper()
	var f *os.File
	b.Do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		f = os.NewFile(uintptr(fd), name)
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if vnet {
			flags |= unix.IFF_VNET_HDR
		}
		ifr.SetUint16(flags)
		return errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), nstest.LinkUp(name))
	})
	if f == nil {
		missing(t, "this test needs /dev/net/tun", whyNoTUN())
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// whyNoTUN is why /dev/net/tun cannot be opened.
func whyNoTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// configure gives the interface addresses and default routes.
func (b *box) configure(t *testing.T, name string, addrs ...string) {
	t.Helper()
	b.Do(t, func() error {
		for _, a := range addrs {
			p := netip.MustParsePrefix(a)
			plan, all := netplan.Default().Of(p.Addr()), netip.MustParsePrefix("0.0.0.0/0")
			if p.Addr().Is6() {
				all = netip.MustParsePrefix("::/0")
			}
			if err := errors.Join(nstest.AddAddr(name, p), nstest.AddRoute(all, plan.Gateway, unix.RTN_UNICAST)); err != nil {
				return err
			}
		}
		return nil
	})
}
