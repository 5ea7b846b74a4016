package supervisor

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
)

// guestConfig is what slirp4netns asks for with --target-type=bess.
func guestConfig(t *testing.T) (Config, string) {
	t.Helper()
	cfg := baseConfig(t)
	cfg.Configure, cfg.IfName, cfg.MTU, cfg.LogLevel = false, "", 1500, slog.LevelWarn
	cfg.DHCPFirst, cfg.DHCPLast = cfg.Plan.V4.Pool()
	dir, err := os.MkdirTemp("/tmp", "pn") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return cfg, filepath.Join(dir, "bess.sock")
}

// plug connects a virtual machine, as soon as somebody listens.
func plug(t *testing.T, path string) (conn *net.UnixConn) {
	t.Helper()
	stacktest.Eventually(t, "somebody who listens on "+path, func() (ok bool) {
		var err error
		conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * stacktest.Patience))
	return conn
}

// machineMAC is the hardware address of virtual machines that have no kernel.
var machineMAC = [6]byte{2, 0xbe, 0x55, 0, 0, 7}

func send(t *testing.T, conn *net.UnixConn, frame []byte) {
	t.Helper()
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
}

// await reads frames for a machine until one is as wanted.
func await(t *testing.T, conn *net.UnixConn, what string, ok func(frame []byte) bool) []byte {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		if err != nil || n == 0 {
			t.Fatalf("%s does not come: %d bytes, %v", what, n, err)
		}
		if f := buf[:n]; n >= 14 && ok(f) {
			return bytes.Clone(f)
		}
	}
}

// outward is the machine's frame with an IP packet.
func outward(packet []byte) []byte {
	f := stacktest.Frame(packet)
	copy(f[6:], machineMAC[:])
	return f
}

var everybody = [6]byte{255, 255, 255, 255, 255, 255}

// arp is the machine's question or, to the gateway's, its answer.
func arp(op byte, target netip.Addr) []byte {
	own := netip.MustParseAddr("10.0.2.100").As4()
	at := target.As4()
	b := append(append([]byte{0, 1, 8, 0, 6, 4, 0, op}, machineMAC[:]...), own[:]...)
	return stacktest.Ethernet(everybody, machineMAC, 0x0806, append(append(b, make([]byte, 6)...), at[:]...))
}

func isARP(op byte) func([]byte) bool {
	return func(f []byte) bool { return len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == op }
}

// pings checks that the gateway answers the machine.
func pings(t *testing.T, conn *net.UnixConn) {
	t.Helper()
	gateway := netplan.Default().V4.Gateway
	send(t, conn, outward(stacktest.EchoRequest(netplan.Default().V4.Container, gateway, 7, 9, []byte("knock"))))
	await(t, conn, "an answer to a ping", func(f []byte) bool {
		h, ok := inet.Parse(f[14:])
		if !ok || h.Proto != inet.ProtoICMP || h.Src != gateway || [6]byte(f) != machineMAC {
			return false
		}
		e, ok := icmp.ParseEcho(false, h.Payload(f[14:]))
		return ok && e.Reply && e.Seq == 9 && string(e.Payload) == "knock"
	})
}

// TestGuest: a machine that speaks in frames gets a network, bad frames do no harm,
// there is one machine only, and its end is ours.
func TestGuest(t *testing.T) {
	cfg, path := guestConfig(t)
	l := begin(t, order{Guest: path, Config: cfg}, nil)
	stacktest.Eventually(t, "the socket", func() bool { _, err := os.Lstat(path); return err == nil })
	_ = l.ready.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := l.ready.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("--ready-fd before there is a machine: %d bytes, %v", n, err)
	}
	conn := plug(t, path)
	l.awaitReady(t)
	if status := l.status(t); status.Endpoint != "seqpacket" || status.Offloads != "none" || status.TCP.Path != string(TCPNetstack) {
		t.Errorf("endpoint %s with %s, TCP by %s", status.Endpoint, status.Offloads, status.TCP.Path)
	}
	gateway := cfg.Plan.V4.Gateway
	send(t, conn, arp(1, gateway))
	if f := await(t, conn, "an answer of ARP", isARP(2)); [6]byte(f) != machineMAC || netip.AddrFrom4([4]byte(f[28:32])) != gateway {
		t.Errorf("ARP: % x", f)
	}
	offers(t, conn, "10.0.2.15")
	pings(t, conn)
	badFrames(t, conn, l)
	if c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a second machine: %v, %v, want it refused", c, err)
	}
	conn.Close()
	if code := l.wait(t); code != ExitOK || l.stderr.String() != "" {
		t.Errorf("exit code %d, %q when the machine was gone", code, l.stderr)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket at the end: %v, want it gone", err)
	}
}

// offers checks what DHCP gives to the machine.
func offers(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	m, err := dhcpv4.NewDiscovery(machineMAC[:])
	if err != nil {
		t.Fatal(err)
	}
	packet := stacktest.Datagram(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), m.ToBytes())
	send(t, conn, stacktest.Ethernet(everybody, machineMAC, 0x0800, packet))
	await(t, conn, "an offer of DHCP", func(f []byte) bool {
		h, ok := inet.Parse(f[14:])
		if !ok || h.Proto != inet.ProtoUDP {
			return false
		}
		u, ok := inet.ParseUDP(h.Payload(f[14:]))
		if !ok || u.SrcPort != 67 {
			return false
		}
		offer, err := dhcpv4.FromBytes(u.Payload)
		if err != nil || offer.YourIPAddr.String() != want || offer.Router()[0].String() != "10.0.2.2" {
			t.Errorf("DHCP: %v\n%s", err, offer.Summary())
		}
		return true
	})
}

// badFrames sends what no machine should.
func badFrames(t *testing.T, conn *net.UnixConn, l *live) {
	t.Helper()
	ping := outward(stacktest.EchoRequest(netplan.Default().V4.Container, netplan.Default().V4.Gateway, 1, 1, make([]byte, 1473)))
	if len(ping) != 1515 {
		t.Fatalf("%d bytes", len(ping))
	}
	stray := outward(stacktest.Datagram(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("10.0.2.2:9"), nil))
	stray[11] = 0x66
	noise := bytes.Repeat([]byte{0x5a, 0, 0xff}, 400)
	r, w := pipe(t)
	if _, _, err := conn.WriteMsgUnix(ping[:100], unix.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, f := range [][]byte{{}, {1}, ping[:13], ping[:14], ping[:33], ping, make([]byte, 9014), make([]byte, 150_000), make([]byte, 1514),
		noise, append(append([]byte{}, ping[:14]...), noise...), stray} {
		send(t, conn, f)
	}
	pings(t, conn)
	_ = r.SetReadDeadline(time.Now().Add(stacktest.Patience))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a descriptor that came with a frame is still open: %v", err)
	}
	counters := l.status(t).Counters
	for name, want := range map[string]uint64{"drop_runt": 3, "drop_oversized": 3, "drop_spoofed_source": 1} {
		if counters[name] != want {
			t.Errorf("%s: %d, want %d (%v)", name, counters[name], want, counters)
		}
	}
}

// TestGuestIsSilent: a connection to a published port of a machine that has said
// nothing asks for its address first, or uses the one that was given.
func TestGuestIsSilent(t *testing.T) {
	for _, given := range []bool{false, true} {
		cfg, path := guestConfig(t)
		cfg.Publish = []portdriver.Spec{{
			Proto: portdriver.TCP, Count: 1,
			Host:      portdriver.Side{Addr: netip.MustParseAddr("127.0.0.1"), Port: 18082},
			Container: portdriver.Side{Addr: cfg.Plan.V4.Container, Port: 80},
		}}
		if given {
			cfg.MAC = machineMAC
		}
		l := begin(t, order{Guest: path, Config: cfg}, nil)
		conn := plug(t, path)
		l.awaitReady(t)
		client, err := net.Dial("tcp", "127.0.0.1:18082")
		if err != nil {
			t.Fatal(err)
		}
		if !given {
			await(t, conn, "a question", isARP(1))
			send(t, conn, arp(2, cfg.Plan.V4.Gateway))
		}
		await(t, conn, "a SYN", func(f []byte) bool {
			return [6]byte(f) == machineMAC && stacktest.IsTCP(stacktest.WireFrame{Bytes: f}, stacktest.SYN)
		})
		client.Close()
		l.leave(t)
	}
}

// TestGuestKernel: a machine with a kernel, here a network namespace with a TAP whose
// frames are carried over, talks to the host and is talked to, also after an engine died.
func TestGuestKernel(t *testing.T) {
	b := newBox(t)
	cfg, path := guestConfig(t)
	cfg.MTU, cfg.Slirp4netnsSocket = 1500, filepath.Join(filepath.Dir(path), "api.sock")
	l := begin(t, order{Guest: path, Config: cfg}, nil)
	// The control socket is open before there is a machine.
	stacktest.Eventually(t, "the control socket", func() bool { _, err := os.Lstat(cfg.Slirp4netnsSocket); return err == nil })
	addPort(t, cfg.Slirp4netnsSocket, "18083")
	tap := b.tap(t, "vec0", false)
	conn := plug(t, path)
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, stop, err := guest.Pump(tap, f)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	f.Close()
	l.awaitReady(t)
	b.configure(t, "vec0", "10.0.2.100/24")
	b.reaches(t, host4)
	b.slaac(t)
	b.reaches(t, host6)
	b.published(t, "10.0.2.100:80", "127.0.0.1:18083")
	addPort(t, cfg.Slirp4netnsSocket, "18084")
	b.published(t, "10.0.2.100:80", "127.0.0.1:18084")
	first := l.status(t).EnginePID
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "another engine", func() bool {
		s := l.status(t)
		return s.EngineReady && s.EnginePID != first
	})
	b.published(t, "10.0.2.100:80", "127.0.0.1:18083")
	b.reaches(t, host4)
	l.leave(t)
}

// addPort publishes port 80 of the container by slirp4netns' control socket.
func addPort(t *testing.T, socket, port string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	question := `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":` + port + `,"guest_port":80}}`
	if _, err := conn.Write([]byte(question)); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.UnixConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), `"return"`) {
		t.Fatalf("add_hostfwd: %q, %v", answer, err)
	}
}

// TestGuestNeverComes: who waits for a machine ends like everybody.
func TestGuestNeverComes(t *testing.T) {
	for name, end := range map[string]func(l *live){
		"exit-fd": func(l *live) { l.exit.Close() },
		"SIGTERM": func(l *live) { _ = l.cmd.Process.Signal(unix.SIGTERM) },
		"SIGINT":  func(l *live) { _ = l.cmd.Process.Signal(unix.SIGINT) },
	} {
		cfg, path := guestConfig(t)
		l := begin(t, order{Guest: path, Config: cfg}, nil)
		stacktest.Eventually(t, "the session", func() bool { _, err := os.Lstat(filepath.Join(l.dir, "api.sock")); return err == nil })
		end(l)
		if code := l.wait(t); code != ExitOK || l.stderr.String() != "" {
			t.Errorf("%s: exit code %d, %q", name, code, l.stderr)
		}
		if b, err := io.ReadAll(l.ready); err != nil || len(b) > 0 {
			t.Errorf("%s: --ready-fd got %q, %v", name, b, err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s: the socket: %v, want it gone", name, err)
		}
	}
}

// TestGuestLeavesAtOnce: nobody failed.
func TestGuestLeavesAtOnce(t *testing.T) {
	cfg, path := guestConfig(t)
	l := begin(t, order{Guest: path, Config: cfg}, nil)
	plug(t, path).Close()
	if code := l.wait(t); code != ExitOK {
		t.Errorf("exit code %d, %q", code, l.stderr)
	}
}

// TestGuestRefusals: what takes a network namespace.
func TestGuestRefusals(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"--tcp=express":        func(c *Config) { c.TCP = TCPExpress },
		"container's listener": func(c *Config) { c.PublishAuto = true },
	} {
		cfg, path := guestConfig(t)
		change(&cfg)
		l := begin(t, order{Guest: path, Config: cfg}, nil)
		plug(t, path)
		if code := l.wait(t); code != ExitFailed || !strings.Contains(l.stderr.String(), want) || !strings.Contains(l.stderr.String(), errNoNetNS.Error()) {
			t.Errorf("exit code %d, %q, want it refused with %q", code, l.stderr, want)
		}
	}
}

// TestListenGuest: what may be in the socket's place, and what is there at the end.
func TestListenGuest(t *testing.T) {
	_, path := guestConfig(t)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if g, err := ListenGuest(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("a file: %v, %v, want an error that names it", g, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	old := unix.Umask(0o027)
	g, err := ListenGuest(path)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("mode %v, %v, want 0750 as the umask says", st.Mode(), err)
	}
	if other, err := ListenGuest(path); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Fatalf("a second one: %v, %v", other, err)
	}
	// Which has not taken the machine's place.
	come := g.start(slog.New(slog.DiscardHandler))
	plug(t, path)
	if a := <-come; a.err != nil {
		t.Error(a.err)
	} else {
		a.file.Close()
	}
	// The listener is closed now, as in one that was killed: the file gives way.
	next, err := ListenGuest(path)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of another was removed: %v", err)
	}
	next.Close()
	next.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket at the end: %v, want it gone", err)
	}
	if g, err := ListenGuest(filepath.Join(path, "nowhere")); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("no directory: %v, %v", g, err)
	}
	t.Chdir(filepath.Dir(path))
	if g, err = ListenGuest("@bess"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat("@bess"); err != nil {
		t.Errorf("an abstract name was bound: %v", err)
	}
	g.Close()
}

// TestGuestOfAnother: a connection of another user is closed, and the next one is
// waited for. Who is another is made up, as a test has only one user.
func TestGuestOfAnother(t *testing.T) {
	for _, c := range []struct {
		peer, ours int
		want       bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {65534, 1000, false}, {-1, 1000, false}} {
		if got := admitted(c.ours)(c.peer); got != c.want {
			t.Errorf("uid %d at a socket of %d: %t", c.peer, c.ours, got)
		}
	}
	_, path := guestConfig(t)
	g, err := ListenGuest(path)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var asked []int
	g.admits = func(uid int) bool {
		asked = append(asked, uid)
		return len(asked) > 1
	}
	var said bytes.Buffer
	come := g.start(slog.New(slog.NewTextHandler(&said, nil)))
	if n, err := plug(t, path).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the first connection: %d bytes, %v, want its end", n, err)
	}
	second := plug(t, path)
	a := <-come
	if a.err != nil {
		t.Fatal(a.err)
	}
	defer a.file.Close()
	if _, err := a.file.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	if n, err := second.Read(buf); string(buf[:n]) != "hello" {
		t.Errorf("the second connection: %q, %v", buf[:n], err)
	}
	if want := []int{os.Getuid(), os.Getuid()}; !slices.Equal(asked, want) || !strings.Contains(said.String(), path) {
		t.Errorf("looked at %v, want %v; said %q", asked, want, said.String())
	}
}
