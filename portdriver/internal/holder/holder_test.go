package holder

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// childVariable makes the test binary the child that holds sockets.
const childVariable = "POSTERN_HOLDER_CHILD"

func TestMain(m *testing.M) {
	if where := os.Getenv(childVariable); where != "" {
		if err := hold(where); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(nstest.Main(m))
}

// hold opens sockets, "tcp 127.0.0.1:80" separated by commas, says so, and keeps them
// until its input ends. "hidden" among them closes /proc/PID/fd to others.
func hold(where string) error {
	for _, what := range strings.Split(where, ",") {
		network, addr, _ := strings.Cut(what, " ")
		var err error
		switch network {
		case "hidden":
			err = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		case "udp", "udp4", "udp6":
			_, err = net.ListenPacket(network, addr)
		default:
			_, err = net.Listen(network, addr)
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("holding")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// child starts a process that holds sockets, and returns its number.
func child(t *testing.T, where string, attr *syscall.SysProcAttr) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+where, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "holding\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

func TestFind(t *testing.T) {
	pid := child(t, "tcp4 127.0.0.1:8001,tcp4 0.0.0.0:8002,tcp6 [::1]:8003,tcp6 [::]:8004,tcp [::]:8005,"+
		"udp4 127.0.0.1:8001,udp6 [::1]:8006", nil)
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		network, addr string
		found         bool
	}{
		{"tcp", "127.0.0.1:8001", true},
		{"tcp", "0.0.0.0:8001", true},
		{"tcp", "127.0.0.2:8001", false},
		{"tcp", "[::]:8001", false},
		{"udp", "127.0.0.1:8001", true},
		{"udp", "[::1]:8001", false},
		{"tcp", "192.0.2.1:8002", true},
		{"udp", "127.0.0.1:8002", false},
		{"tcp", "[::1]:8003", true},
		{"tcp", "[::]:8003", true},
		{"tcp", "127.0.0.1:8003", false},
		{"tcp", "[::1]:8004", true},
		{"tcp", "[fe80::1%lo]:8004", true},
		{"tcp", "127.0.0.1:8005", true}, // a socket of both families
		{"udp", "[::1]:8006", true},
		{"udp", "127.0.0.1:8006", false},
		{"tcp", "127.0.0.1:8007", false},
	} {
		got := Find(tt.network, netip.MustParseAddrPort(tt.addr))
		want := Holder{}
		if tt.found {
			want = Holder{PID: pid, Name: strings.TrimSpace(string(name)), UID: 0, Listed: true}
		}
		if got != want {
			t.Errorf("%s %s: %+v, want %+v", tt.network, tt.addr, got, want)
		}
	}
	if got, want := Find("tcp", netip.MustParseAddrPort("127.0.0.1:8001")).String(), fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), pid); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestFindConnection: a connection's own port is taken too.
func TestFindConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if h := Find("tcp", netip.MustParseAddrPort(c.LocalAddr().String())); h.PID != os.Getpid() {
		t.Errorf("%+v, want this process", h)
	}
}

// TestFindHidden: a process whose descriptors may not be seen is told by its user.
func TestFindHidden(t *testing.T) {
	// One that is not dumpable is closed to those without capabilities over it.
	ready := make(chan Holder)
	child(t, "hidden,tcp4 127.0.0.1:8011", nil)
	go func() {
		var none [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		runtime.LockOSThread() // never unlocked: the thread has lost its capabilities
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
		}
		ready <- Find("tcp", netip.MustParseAddrPort("127.0.0.1:8011"))
	}()
	h := <-ready
	if h.PID != 0 || !h.Listed || h.UID != 0 {
		t.Fatalf("%+v, want a user only", h)
	}
	if got := h.String(); got != "a process of this user that /proc does not show" {
		t.Error(got)
	}
}

func TestString(t *testing.T) {
	for _, tt := range []struct {
		holder Holder
		want   string
	}{
		{Holder{}, "a process that /proc does not show"},
		{Holder{PID: 7, Name: "nginx", UID: 0, Listed: true}, "nginx (pid 7)"},
		{Holder{UID: 4000000000, Listed: true}, "a process of another user (4000000000)"},
		{Holder{UID: uint32(os.Geteuid()), Listed: true}, "a process of this user that /proc does not show"},
	} {
		if got := tt.holder.String(); got != tt.want {
			t.Errorf("%+v is %q, want %q", tt.holder, got, tt.want)
		}
	}
}

// TestName: a process chooses its own name, but not how our line looks.
func TestName(t *testing.T) {
	done := make(chan string)
	go func() {
		runtime.LockOSThread() // never unlocked: the name is the thread's
		if err := os.WriteFile("/proc/thread-self/comm", []byte("a\n\x1b[31mb"), 0); err != nil {
			t.Error(err)
		}
		done <- command(unix.Gettid())
	}()
	if got := <-done; got != "a??[31mb" {
		t.Errorf("%q", got)
	}
	if got := command(1 << 30); got != "a process that has just ended" {
		t.Errorf("%q", got)
	}
}

func TestParse(t *testing.T) {
	const head = "   0: "
	for _, tt := range []struct {
		line string
		want string // "addr state uid inode"
	}{
		{head + "0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0 100 0 0 10 0", "127.0.0.1:8080 10 1000 12345"},
		{head + "00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1", "[::1]:8080 10 0 7"},
		{head + "0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 7 1", "[::ffff:127.0.0.1]:8080 1 0 7"},
		{head + "0100007F:1F90 00000000:0000 06 00000000:00000000 00:00000000 00000000  1000        0 0", ""}, // TIME_WAIT
		{head + "0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0", ""},
		{head + "0100007F:1F90 00000000:0000 ZZ 00000000:00000000 00:00000000 00000000  1000        0 1", ""},
		{head + "0100007:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1", ""},
		{head + "0100007F1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1", ""},
		{head + "0100007F:11F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1", ""},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", ""},
		{"", ""},
	} {
		s, ok := parse(tt.line)
		got := ""
		if ok {
			got = fmt.Sprintf("%v %d %d %d", s.addr, s.state, s.uid, s.inode)
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.line, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parse(line); ok && (!s.addr.IsValid() || s.state == stateTimeWait) {
			t.Errorf("%q is %+v", line, s)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	for b.Loop() {
		if h := Find("tcp", at); h.PID != os.Getpid() {
			b.Fatal(strconv.Itoa(h.PID))
		}
	}
}
