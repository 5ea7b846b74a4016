package activation

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// stageVariable is set in the processes of activate.
const stageVariable = "POSTERN_ACTIVATION_STAGE"

func TestMain(m *testing.M) {
	switch os.Getenv(stageVariable) {
	case "":
		os.Exit(nstest.Main(m))
	case "exec":
		// As systemd does: the number of the process that will use them.
		pid := strconv.Itoa(os.Getpid())
		os.Setenv("LISTEN_PID", pid)
		os.Setenv(stageVariable, "take")
		fmt.Fprintln(os.Stderr, unix.Exec("/proc/self/exe", os.Args, os.Environ()))
		os.Exit(1)
	}
	all, err := Take(os.Getenv, os.Getpid())
	if err := json.NewEncoder(os.Stdout).Encode(report(all, err)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// taken is what the process that took the sockets over says.
type taken struct {
	Sockets []string
	Err     string
	// Watched says that the runtime's poller has one.
	Watched bool
	// Left are the numbers that are still open and those that children get.
	Left, ForChildren []int
}

func report(all []Inherited, err error) (r taken) {
	if err != nil {
		r.Err = err.Error()
	}
	for _, in := range all {
		r.Sockets = append(r.Sockets, fmt.Sprintf("%d %s %s %v%s dual=%v %s", in.Index, in.Name, in.Network, in.Addr, in.Path, in.Dual, state(in)))
	}
	for fd := First; fd < First+4; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			r.ForChildren = append(r.ForChildren, fd)
		}
		if err != nil {
			r.Left = append(r.Left, fd)
		}
	}
	fds, _ := os.ReadDir("/proc/self/fdinfo")
	for _, fd := range fds {
		b, _ := os.ReadFile("/proc/self/fdinfo/" + fd.Name())
		for _, in := range all {
			_ = bind.Control(in.File, func(n int) error {
				r.Watched = r.Watched || strings.Contains(string(b), fmt.Sprintf("tfd: %8d", n))
				return nil
			})
		}
	}
	return r
}

// state lists the flags that a socket must have.
func state(in Inherited) (flags string) {
	err := bind.Control(in.File, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if n&unix.O_NONBLOCK != 0 {
			flags += "nonblock "
		}
		if info, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO); err == nil && info == 1 {
			flags += "pktinfo "
		}
		n, _ = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if n&unix.FD_CLOEXEC != 0 {
			flags += "cloexec"
		}
		return err
	})
	if err != nil {
		return err.Error()
	}
	return flags
}

// activate runs a process that is passed files, with variables.
func activate(t *testing.T, files []*os.File, env ...string) (r taken) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stageVariable+"=exec", "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if r.ForChildren != nil || r.Left != nil || r.Watched {
		t.Errorf("descriptors for children %v, left open %v, in the poller: %v", r.ForChildren, r.Left, r.Watched)
	}
	return r
}

// filer is every listener of package net.
type filer interface{ File() (*os.File, error) }

func file(t *testing.T, l any, err error) *os.File {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(filer).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	l.(interface{ Close() error }).Close()
	return f
}

func listen(t *testing.T, network, addr string) *os.File {
	t.Helper()
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, addr)
		return file(t, c, err)
	}
	l, err := net.Listen(network, addr)
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return file(t, l, err)
}

func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	files := []*os.File{
		listen(t, "tcp4", "0.0.0.0:80"), listen(t, "tcp6", "[::]:80"), listen(t, "tcp", "[::]:81"), listen(t, "tcp6", "[::1]:82"),
		listen(t, "udp4", "127.0.0.1:53"), listen(t, "udp", "[::]:54"), listen(t, "unix", path), listen(t, "unix", "@abstract"),
	}
	r := activate(t, files, "LISTEN_FDS=8", "LISTEN_FDNAMES=web:web:dual:six:dns:dns2:sock:abstract")
	want := []string{
		"0 web tcp 0.0.0.0:80 dual=false nonblock cloexec",
		"1 web tcp [::]:80 dual=false nonblock cloexec",
		"2 dual tcp [::]:81 dual=true nonblock cloexec",
		"3 six tcp [::1]:82 dual=false nonblock cloexec",
		"4 dns udp 127.0.0.1:53 dual=false nonblock pktinfo cloexec",
		"5 dns2 udp [::]:54 dual=true nonblock pktinfo cloexec",
		"6 sock unix invalid AddrPort" + path + " dual=false nonblock cloexec",
		"7 abstract unix invalid AddrPort dual=false nonblock cloexec",
	}
	if diff := cmp.Diff(want, r.Sockets); diff != "" || r.Err != "" {
		t.Errorf("%s (-want +got):\n%s", r.Err, diff)
	}
	if r := activate(t, files[:2], "LISTEN_FDS=2"); len(r.Sockets) != 2 || !strings.HasPrefix(r.Sockets[1], "1 unknown tcp") {
		t.Errorf("without names: %+v", r)
	}
	if r := activate(t, nil, "LISTEN_FDS=0"); r.Sockets != nil || r.Err != "" {
		t.Errorf("none: %+v", r)
	}
}

func TestTakeRefuses(t *testing.T) {
	good := listen(t, "tcp", "127.0.0.1:0")
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	connected, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	raw := func(domain, kind int) *os.File {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, tt := range []struct {
		name string
		bad  *os.File
		env  []string
		want string
	}{
		{"no socket", null, nil, `inherited descriptor 4 ("b"): not a socket`},
		{"not listening", raw(unix.AF_INET, unix.SOCK_STREAM), nil, "does not listen"},
		{"unbound UDP", raw(unix.AF_INET6, unix.SOCK_DGRAM), nil, "bound to no port"},
		{"UDP with a peer", file(t, connected, nil), nil, "one peer"},
		{"unix datagrams", raw(unix.AF_UNIX, unix.SOCK_DGRAM), nil, "want one that listens"},
		{"unix seqpacket", raw(unix.AF_UNIX, unix.SOCK_SEQPACKET), nil, "want one that listens"},
		{"netlink", raw(unix.AF_NETLINK, unix.SOCK_DGRAM), nil, "want one that listens"},
		{"too many names", good, []string{"LISTEN_FDNAMES=a:b:c"}, "3 names for 2"},
		{"too few names", good, []string{"LISTEN_FDNAMES=a"}, "1 names for 2"},
		{"no number", nil, []string{"LISTEN_FDS=x"}, `LISTEN_FDS is "x"`},
		{"negative", nil, []string{"LISTEN_FDS=-1"}, `LISTEN_FDS is "-1"`},
		{"too many", nil, []string{"LISTEN_FDS=4097"}, "want 0 to 4096"},
		{"more than there are", good, []string{"LISTEN_FDS=9", "LISTEN_FDNAMES="}, "not a socket"},
	} {
		var files []*os.File
		if tt.bad != nil {
			files = []*os.File{good, tt.bad}
		}
		r := activate(t, files, append([]string{"LISTEN_FDS=2", "LISTEN_FDNAMES=a:b"}, tt.env...)...)
		if !strings.Contains(r.Err, tt.want) || strings.Contains(r.Err, "\n") || r.Sockets != nil {
			t.Errorf("%s: %+v, want %q", tt.name, r, tt.want)
		}
	}
}

// TestTakeOthers: sockets for another process are left alone.
func TestTakeOthers(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"LISTEN_FDS": "1"},
		{"LISTEN_FDS": "1", "LISTEN_PID": "1"},
		{"LISTEN_FDS": "1", "LISTEN_PID": "x"},
		{"LISTEN_PID": "77"},
	} {
		if all, err := Take(func(name string) string { return env[name] }, 77); all != nil || err != nil {
			t.Errorf("%v: %v, %v", env, all, err)
		}
	}
}

func TestVariables(t *testing.T) {
	for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		if !slices.Contains(Variables, name) {
			t.Errorf("%s would go to children", name)
		}
	}
}
