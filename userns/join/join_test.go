package join

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/spawn"
)

// TestMain lets the test binary be the namespaces' first inhabitant, which lives
// until its standard input ends.
func TestMain(m *testing.M) {
	// Otherwise every program of a race-detecting build lingers for a second.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	switch os.Args[0] {
	case "inhabitant":
		os.Stdout.Write([]byte("!"))
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case "withoutdevice":
		os.Exit(withoutDevice())
	case "owner":
		os.Exit(own())
	}
	os.Exit(m.Run())
}

// inhabited makes namespaces and returns their first inhabitant.
func inhabited(t *testing.T, mode spawn.Mode, change func(*spawn.Config)) *spawn.Process {
	t.Helper()
	maps, err := spawn.PlanMaps(context.Background(), mode)
	if err != nil {
		t.Fatal(err)
	}
	in, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cfg := spawn.Config{Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in, out, os.Stderr}, Pdeathsig: unix.SIGKILL}
	if change != nil {
		change(&cfg)
	}
	p, err := spawn.Start(context.Background(), cfg)
	in.Close()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keep.Close(); p.Close() })
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		t.Fatalf("the inhabitant did not come up: %v", err)
	}
	return p
}

func mustOpen(t *testing.T, pid int) *Target {
	t.Helper()
	target, err := OpenPID(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

func mustVisit(t *testing.T, target *Target, req Request) *Sockets {
	t.Helper()
	s, err := target.Open(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// output runs a program in the target and returns what it prints.
func output(t *testing.T, target *Target, cmd Command) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Files = []*os.File{nil, w, w}
	p, err := target.Start(context.Background(), cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.ExitStatus() != 0 {
		t.Errorf("%v: status %v, %v, output %q", cmd.Argv, status, err, out)
	}
	return string(out)
}

func shell(script string) Command {
	return Command{Path: "/bin/sh", Argv: []string{"sh", "-c", script}}
}

var testInterface = rtnl.Interface{
	Name: "tap0", MTU: 65520, TxQueueLen: 500,
	Addrs:    []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/64")},
	Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")},
}

// configured checks the interface as the namespace's inhabitants see it. The
// kernel's own tables are read, so that no program is needed.
func configured(t *testing.T, target *Target, mac string) {
	t.Helper()
	got := output(t, target, shell("cat /proc/net/dev /proc/net/route /proc/net/if_inet6 /proc/net/ipv6_route /proc/net/fib_trie"))
	for _, want := range []string{
		"tap0:", "lo:",
		"tap0\t00000000\t0202000A\t0003", // default via 10.0.2.2
		"10.0.2.100", "10.0.2.255",
		"fd000000000000000000000000000100", // the address
		"fd000000000000000000000000000002", // the gateway
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the namespace's tables lack %q:\n%s", want, got)
		}
	}
	for line := range strings.Lines(got) {
		// 08 is IFA_F_DADFAILED, 40 tentative; 82 is permanent and without DAD.
		if f := strings.Fields(line); len(f) == 6 && strings.HasPrefix(f[0], "fd00") && f[4] != "82" {
			t.Errorf("flags of the IPv6 address are %s: %s", f[4], line)
		}
	}
	if len(mac) != len("00:00:00:00:00:00") {
		t.Errorf("MAC %q", mac)
	}
}

func TestTAP(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		usertest.Missing(t, "%v", err)
	}
	f.Close()
	// Where only root may open the device, root is the user who can be tested.
	if st, err := os.Stat("/dev/net/tun"); err == nil && st.Mode().Perm()&0o006 == 0o006 {
		if !usertest.AsUser(t) {
			return
		}
	}
	p := inhabited(t, spawn.Auto, nil)
	target := mustOpen(t, p.PID)
	s := mustVisit(t, target, Request{TAP: "tap0"})
	if s.Packet != nil || s.FarRoute != nil || s.FarNetNS != nil {
		t.Errorf("unasked-for sockets: %+v", s)
	}
	for range 2 { // the second time must do no harm
		link, err := rtnl.Configure(s.Route, testInterface)
		if err != nil {
			t.Fatal(err)
		}
		configured(t, target, link.MAC.String())
	}
	size, err := unix.IoctlGetInt(int(s.TAP.Fd()), unix.TUNGETVNETHDRSZ)
	if err != nil || size != vnetHeaderSize {
		t.Errorf("vnet header of %d bytes, %v", size, err)
	}
	if _, err := target.Open(Request{TAP: "tap0"}); !errors.Is(err, unix.EBUSY) || NoTUN(err) {
		t.Errorf("second tap0: %v, want EBUSY", err)
	}
	if _, err := target.Open(Request{TAP: "lo"}); err == nil || NoTUN(err) {
		t.Errorf("TAP over lo: %v", err)
	}
}

// An unusable /dev/net/tun has to be told apart from other failures, since the
// packet socket takes its place.
func TestNoTUN(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EACCES, unix.EPERM, unix.ENODEV, unix.ENXIO} {
		target := &Target{name: "process 1"}
		err := target.explain(&rawfork.StepError{What: stepTUN, Errno: errno})
		if want := "/dev/net/tun: " + errno.Error(); !NoTUN(err) || !errors.Is(err, errno) || err.Error() != want {
			t.Errorf("%v: %v, NoTUN %t", errno, err, NoTUN(err))
		}
		err = target.explain(&rawfork.StepError{What: "create the interface tap0", Errno: errno})
		if NoTUN(err) || !errors.Is(err, errno) {
			t.Errorf("another step's %v counts as no /dev/net/tun", errno)
		}
	}
}

// The same in a file tree without the device, where everything else still works.
func TestMissingTUNDevice(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps, err := spawn.PlanMaps(context.Background(), spawn.Single)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"withoutdevice"}, Files: []*os.File{nil, w, os.Stderr}, Pdeathsig: unix.SIGKILL,
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out, err := io.ReadAll(r)
	if want := "true /dev/net/tun: no such file or directory\n<nil>\n"; err != nil || string(out) != want {
		t.Errorf("got %q, %v; want %q", out, err, want)
	}
}

// withoutDevice covers /dev with an empty filesystem, makes namespaces below its
// own and asks for a TAP and then for a packet socket in them.
func withoutDevice() int {
	if err := unix.Mount("none", "/dev", "tmpfs", 0, ""); err != nil {
		fmt.Println(err)
		return 1
	}
	null, err := os.Create("/dev/null") // what spawn gives as missing descriptors
	if err != nil {
		fmt.Println(err)
		return 1
	}
	null.Close()
	ctx := context.Background()
	maps, err := spawn.PlanMaps(ctx, spawn.Single)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	in, keep, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer keep.Close()
	p, err := spawn.Start(ctx, spawn.Config{Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in}, Pdeathsig: unix.SIGKILL})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer p.Close()
	target, err := OpenPID(p.PID)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer target.Close()
	_, err = target.Open(Request{TAP: "tap0"})
	fmt.Println(NoTUN(err), err)
	s, err := target.Open(Request{Packet: true})
	fmt.Println(err)
	if err == nil {
		s.Close()
	}
	return 0
}

func TestPacketSocketThroughVeth(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, inhabited(t, spawn.Auto, nil).PID)
	s := mustVisit(t, target, Request{Packet: true})
	if err := rtnl.AddVeth(s.Route, "tap0", "far0", s.FarNetNS); err != nil {
		t.Fatal(err)
	}
	if err := rtnl.AddVeth(s.Route, "tap0", "far1", s.FarNetNS); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second pair: %v, want EEXIST", err)
	}
	index, err := rtnl.FarUp(s.FarRoute, "far0", testInterface.MTU)
	if err != nil {
		t.Fatal(err)
	}
	if err := rtnl.BindPacket(s.Packet, index); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		link, err := rtnl.Configure(s.Route, testInterface)
		if err != nil {
			t.Fatal(err)
		}
		configured(t, target, link.MAC.String())
	}
	roundTrip(t, s, target)
}

// roundTrip sends a frame from the namespace's own packet socket to ours and one
// back, both through the veth pair.
func roundTrip(t *testing.T, s *Sockets, target *Target) {
	t.Helper()
	link, err := rtnl.Find(s.Route, "tap0")
	if err != nil {
		t.Fatal(err)
	}
	inner := packetSocketIn(t, target)
	if err := rtnl.BindPacket(inner, link.Index); err != nil {
		t.Fatal(err)
	}
	// 0x88b5 is an EtherType for local experiments (IEEE 802, 9.2.3).
	out := frame("\xff\xff\xff\xff\xff\xff", string(link.MAC), "from inside")
	back := frame(string(link.MAC), "\x02\x00\x00\x00\x00\x01", "from outside")
	for _, way := range []struct {
		from, to *os.File
		frame    []byte
	}{{inner, s.Packet, out}, {s.Packet, inner, back}} {
		if _, err := way.from.Write(way.frame); err != nil {
			t.Fatal(err)
		}
		if !arrives(t, way.to, way.frame) {
			t.Errorf("%q did not arrive", way.frame)
		}
	}
}

func frame(to, from, text string) []byte {
	return append([]byte(to+from+"\x88\xb5"), []byte(text+strings.Repeat(".", 46-len(text)))...)
}

// arrives reads frames until the wanted one comes; the kernel sends some of its
// own.
func arrives(t *testing.T, f *os.File, want []byte) bool {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	buf := make([]byte, 2048)
	for time.Now().Before(deadline) {
		poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 1000); err != nil || n == 0 {
			continue
		}
		n, _, err := unix.Recvfrom(int(f.Fd()), buf, unix.MSG_DONTWAIT)
		if err == nil && bytes.Equal(buf[:n], want) {
			return true
		}
	}
	return false
}

// packetSocketIn makes an AF_PACKET socket in the target's own network namespace.
func packetSocketIn(t *testing.T, target *Target) *os.File {
	t.Helper()
	var f *os.File
	v := &visit{script: &rawfork.Script{}, sent: rawfork.NewDescriptors(1)}
	target.enter(v.script)
	v.socket("open a packet socket", &f, unix.AF_PACKET, unix.SOCK_RAW, 0)
	v.script.Send(v.sent)
	child, err := v.script.Fork(0)
	if err != nil {
		t.Fatal(err)
	}
	files, err := child.Result(context.Background())
	if err := errors.Join(err, child.Finish()); err != nil || len(files) != 1 {
		t.Fatalf("%d sockets, %v", len(files), err)
	}
	t.Cleanup(func() { files[0].Close() })
	return files[0]
}

func TestOpenPIDRefusesTheDead(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	p := inhabited(t, spawn.Single, nil)
	target := mustOpen(t, p.PID)
	if err := target.Alive(); err != nil {
		t.Errorf("alive: %v", err)
	}
	pid := p.PID
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	// Until it is waited for, the number names a zombie, whose files are gone.
	deadline := time.Now().Add(10 * time.Second)
	for target.Alive() == nil && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if err := target.Alive(); !errors.Is(err, unix.ESRCH) {
		t.Errorf("alive after the end: %v", err)
	}
	if _, err := OpenPID(pid); err == nil {
		t.Error("a zombie was opened")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPID(pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("open after the end: %v, want ESRCH", err)
	}
	// The namespaces are held by the target, whoever has the number by now.
	s := mustVisit(t, target, Request{})
	if err := rtnl.Up(s.Route, "lo"); err != nil {
		t.Error(err)
	}
}

// A number that means another process by the time the files are opened has to be
// refused: the pidfd is asked last.
func TestPIDReuseIsRefused(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	dead := inhabited(t, spawn.Single, nil)
	living := inhabited(t, spawn.Single, nil)
	pidfd, err := unix.PidfdOpen(dead.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	target := &Target{name: "process", pidfd: os.NewFile(uintptr(pidfd), "pidfd")}
	defer target.Close()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	if err := target.openOf(living.PID); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a reused number: %v, want ESRCH", err)
	}
}

func TestOpenPaths(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	p := inhabited(t, spawn.Single, nil)
	dir := fmt.Sprintf("/proc/%d/ns/", p.PID)
	for _, userns := range []string{"", dir + "user"} {
		target, err := OpenPaths(dir+"net", userns)
		if err != nil {
			t.Fatal(err)
		}
		s := mustVisit(t, target, Request{})
		if err := rtnl.Up(s.Route, "lo"); err != nil {
			t.Error(err)
		}
		if target.PIDFD() != nil || target.Alive() != nil {
			t.Error("a target from paths has no process")
		}
		if _, err := target.Start(context.Background(), Command{Path: "/bin/true", Mount: true}); err == nil {
			t.Error("mount namespace of a path entered")
		}
		target.Close()
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		netns, userns string
		want          error
	}{
		{dir + "user", "", unix.EINVAL},
		{dir + "net", dir + "net", unix.EINVAL},
		{"/etc/passwd", "", unix.EINVAL},
		{fifo, "", unix.EINVAL},
		{"/nonexistent", "", unix.ENOENT},
		{"/proc/self/ns/net", "", ErrOwnNetwork},
	} {
		target, err := OpenPaths(tc.netns, tc.userns)
		if err == nil {
			_, err = target.Open(Request{})
			target.Close()
		}
		if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s, %q: %v, want %v", tc.netns, tc.userns, err, tc.want)
		}
	}
}

// Not even root may put an interface into the network that we are in ourselves.
func TestOwnNetworkIsRefused(t *testing.T) {
	target := mustOpen(t, os.Getpid())
	if _, err := target.Open(Request{}); !errors.Is(err, ErrOwnNetwork) {
		t.Errorf("error %v, want ErrOwnNetwork", err)
	}
}

// Root makes namespaces, an ordinary user asks for them.
func TestForeignNamespaceIsRefused(t *testing.T) {
	const variable = "POSTERN_TEST_FOREIGN"
	if pid := os.Getenv(variable); pid != "" {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		target, err := OpenPID(n)
		if err == nil {
			_, err = target.Open(Request{})
		}
		if !errors.Is(err, ErrNotOwner) || !strings.Contains(err.Error(), "uid 0") {
			t.Errorf("error %v, want a refusal that names uid 0", err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs a second user, so root to become both")
	}
	p := inhabited(t, spawn.Single, nil)
	usertest.AsUser(t, variable+"="+strconv.Itoa(p.PID))
}

// Root may enter a user's namespaces.
func TestRootEntersAUsersNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is about root; the other tests are about users")
	}
	owner := usertest.Command(t)
	owner.Args = []string{"owner"}
	in, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer owner.Wait()
	defer in.Close()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	target := mustOpen(t, pid)
	s := mustVisit(t, target, Request{})
	if err := rtnl.Up(s.Route, "lo"); err != nil {
		t.Error(err)
	}
	if got := output(t, target, shell("id -u; cat /proc/self/uid_map")); !strings.HasPrefix(got, "0\n") {
		t.Errorf("inside: %q", got)
	}
}

// own makes namespaces for another user's test to enter.
func own() int {
	maps, err := spawn.PlanMaps(context.Background(), spawn.Single)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{os.Stdin, nil, os.Stderr}, Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer p.Close()
	fmt.Println(p.PID)
	p.Wait()
	return 0
}

func TestInvalidNames(t *testing.T) {
	for _, name := range []string{"sixteen-bytes-xx", "a/b", "a:b", "a b", "tap%d", ".", "..", "a\x00"} {
		if err := checkName(name); !errors.Is(err, errName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := checkName("fifteen-bytes-x"); err != nil {
		t.Error(err)
	}
}
