package supervisor

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/userns/join"
)

// TestAttachInOwnUserNamespace: who is root of the user namespace that owns the network
// namespace need not enter it, and the engine is as confined as ever.
func TestAttachInOwnUserNamespace(t *testing.T) {
	b := newBox(t)
	l := start(t, order{NetNS: b.path, Config: baseConfig(t)}, nil)
	if got := b.reaches(t, host4); got != netplan.Default().V4.Container {
		t.Errorf("the container's address is %s", got)
	}
	b.reaches(t, host6)
	status := procStatus(t, l.status(t).EnginePID)
	for name, want := range map[string]string{"CapEff": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "NoNewPrivs": "1"} {
		if got := status[name]; got != want {
			t.Errorf("the engine's %s is %s, want %s", name, got, want)
		}
	}
	l.leave(t)
	if _, ok := b.mac(t, "tap0"); ok {
		t.Error("the interface is still there")
	}
}

// procStatus reads /proc/PID/status.
func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		values[name] = strings.TrimSpace(value)
	}
	return values
}

// TestAttachAddress: the interface has the hardware address that was asked for.
func TestAttachAddress(t *testing.T) {
	for _, endpoint := range []Endpoint{EndpointAuto, EndpointPacket} {
		t.Run(string(endpoint), func(t *testing.T) {
			b, cfg := newBox(t), baseConfig(t)
			cfg.Endpoint, cfg.MAC = endpoint, [6]byte{2, 0x11, 0x22, 0x33, 0x44, 0x55}
			l := start(t, order{NetNS: b.path, Config: cfg}, nil)
			if got, _ := b.mac(t, "tap0"); got != cfg.MAC {
				t.Errorf("the hardware address is %x", got)
			}
			b.reaches(t, host4)
			l.leave(t)
			if _, ok := b.mac(t, "tap0"); ok {
				t.Error("the interface is still there: who starts again would find its name taken")
			}
		})
	}
}

// TestAttachNoDNS: port 53 of the name server's address is closed, and resolv.conf has
// no name server.
func TestAttachNoDNS(t *testing.T) {
	b, cfg := newBox(t), baseConfig(t)
	cfg.NoDNS = true
	l := start(t, order{NetNS: b.path, Config: cfg}, nil)
	for _, f := range []netplan.Family{cfg.Plan.V4, cfg.Plan.V6} {
		if _, err := b.dial(t, "tcp", netip.AddrPortFrom(f.Resolver, 53)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("tcp port 53 of %s: %v, want it refused", f.Resolver, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "resolv.conf"))
	if err != nil || strings.Contains(string(text), "nameserver") {
		t.Errorf("resolv.conf: %v\n%s", err, text)
	}
	l.leave(t)
}

// TestExistingTAP: an interface that was there before is attached to with offloads, is
// its owner's to configure, also later, and outlives us as it was.
func TestExistingTAP(t *testing.T) {
	b, cfg := newBox(t), baseConfig(t)
	f := b.tap(t, "tap0", false)
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	mac, _ := b.mac(t, "tap0")
	cfg.Configure = false
	l := start(t, order{NetNS: b.path, Config: cfg}, nil)
	status := l.status(t)
	if status.Endpoint != "tap" || !strings.Contains(status.Offloads, "tso") {
		t.Errorf("endpoint %s with %s", status.Endpoint, status.Offloads)
	}
	b.Do(t, func() error {
		i, err := net.InterfaceByName("tap0")
		if err == nil && i.MTU != 1500 {
			t.Errorf("the MTU is %d: it was changed", i.MTU)
		}
		return err
	})
	// As RootlessKit does when we are ready.
	b.configure(t, "tap0", "10.0.2.100/24")
	b.reaches(t, host4)
	if status.TCP.Path == string(TCPExpress) && l.status(t).Counters["tcp_express"] == 0 {
		t.Errorf("nothing went by the express path: %v", l.status(t).Counters)
	}
	l.leave(t)
	if got, ok := b.mac(t, "tap0"); !ok || got != mac {
		t.Fatalf("the interface is gone or another: %x, %v", got, ok)
	}
	// A second session, and then somebody who knows of no vnet header.
	cfg.StateDir = filepath.Join(t.TempDir(), "again")
	l = start(t, order{NetNS: b.path, Config: cfg}, nil)
	b.reaches(t, host4)
	l.leave(t)
	again := b.tap(t, "tap0", false)
	if d, err := join.DescribeTAP(again); err != nil || d.VNetHeader || !d.Persistent || d.MAC != mac {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestExistingTAPOtherAddress: an address that is not the plan's works as well, the
// universal way.
func TestExistingTAPOtherAddress(t *testing.T) {
	b, cfg := newBox(t), baseConfig(t)
	f := b.tap(t, "tap0", false)
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	cfg.Configure = false
	cfg.DHCPFirst, cfg.DHCPLast = netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.30")
	l := start(t, order{NetNS: b.path, Config: cfg}, nil)
	offer := b.discover(t, "tap0")
	if offer.YourIPAddr.String() != "10.0.2.15" || offer.IPAddressLeaseTime(0) != 24*time.Hour {
		t.Errorf("DHCP offers\n%s", offer.Summary())
	}
	b.configure(t, "tap0", "10.0.2.15/24")
	if got := b.reaches(t, host4); got != cfg.DHCPFirst {
		t.Errorf("the container's address is %s", got)
	}
	b.slaac(t)
	b.reaches(t, host6)
	l.leave(t)
}

// discover asks for an address, and asks again as long as no answer comes.
func (b *box) discover(t *testing.T, name string) (offer *dhcpv4.DHCPv4) {
	t.Helper()
	mac, _ := b.mac(t, name)
	m, err := dhcpv4.NewDiscovery(mac[:], dhcpv4.WithBroadcast(true))
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	b.Do(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return errors.Join(err,
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000}),
			unix.BindToDevice(fd, name),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 68}))
	})
	defer unix.Close(fd)
	buf := make([]byte, 2048)
	stacktest.Eventually(t, "an answer of DHCP", func() bool {
		if err := unix.Sendto(fd, m.ToBytes(), 0, &unix.SockaddrInet4{Addr: [4]byte{255, 255, 255, 255}, Port: 67}); err != nil {
			t.Fatal(err)
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return false
		}
		offer, err = dhcpv4.FromBytes(buf[:n])
		return err == nil
	})
	return offer
}

// slaac waits for an address from the router's advertisement.
func (b *box) slaac(t *testing.T) {
	t.Helper()
	stacktest.Eventually(t, "an address from the router's advertisement", func() (ok bool) {
		b.Do(t, func() error {
			conn, err := net.Dial("udp", netip.AddrPortFrom(host6, 9).String())
			if err != nil {
				return nil
			}
			defer conn.Close()
			from := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
			ok = netplan.DefaultV6.Contains(from) && from != netplan.Default().V6.Container
			return nil
		})
		return ok
	})
}

// TestHandedTAP: a TAP that the caller has opened is served without its namespace: out
// by both families, in by the netstack, until it is gone.
func TestHandedTAP(t *testing.T) {
	for name, vnet := range map[string]bool{"bare": false, "vnet": true} {
		t.Run(name, func(t *testing.T) {
			b, cfg := newBox(t), baseConfig(t)
			f := b.tap(t, "mytap", vnet)
			cfg.Publish = []portdriver.Spec{{
				Proto: portdriver.TCP, Count: 1,
				Host:      portdriver.Side{Addr: netip.MustParseAddr("127.0.0.1"), Port: 18080},
				Container: portdriver.Side{Addr: netip.MustParseAddr("10.0.2.15"), Port: 80},
			}}
			l := start(t, order{TAP: true, Config: cfg}, f)
			f.Close() // it is the session's now
			b.configure(t, "mytap", "10.0.2.15/24")
			b.reaches(t, host4)
			b.slaac(t)
			b.reaches(t, host6)
			b.published(t, "10.0.2.15:80", "127.0.0.1:18080")
			status := l.status(t)
			if want := map[bool]string{false: "bare-tap", true: "tap"}[vnet]; status.Endpoint != want || status.TCP.Path != string(TCPNetstack) {
				t.Errorf("endpoint %s, TCP by %s (%s)", status.Endpoint, status.TCP.Path, status.TCP.Why)
			}
			b.Do(t, func() error { return nstest.LinkDelete("mytap") })
			if code := l.wait(t); code != ExitOK {
				t.Errorf("exit code %d when the TAP was deleted, want %d", code, ExitOK)
			}
		})
	}
}

// published checks that a client of the host reaches a server of the container.
func (b *box) published(t *testing.T, server, client string) {
	t.Helper()
	var listener net.Listener
	b.Do(t, func() (err error) {
		listener, err = net.Listen("tcp", server)
		return err
	})
	defer listener.Close()
	from := make(chan string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			from <- err.Error()
			return
		}
		defer conn.Close()
		from <- conn.RemoteAddr().String()
	}()
	conn, err := net.Dial("tcp", client)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-from; !strings.HasPrefix(got, "10.0.2.2:") {
		t.Errorf("the server sees %s, want the gateway for a client of the loopback", got)
	}
}

// TestHandedTAPEnds: also by its ExitFD and by a signal, and it stays the caller's.
func TestHandedTAPEnds(t *testing.T) {
	b := newBox(t)
	f := b.tap(t, "mytap", false)
	for _, end := range []func(*live){
		func(l *live) { l.leave(t) },
		func(l *live) {
			if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Error(err)
			}
			if code := l.wait(t); code != ExitOK {
				t.Errorf("exit code %d after SIGTERM, want %d", code, ExitOK)
			}
		},
	} {
		end(start(t, order{TAP: true, Config: baseConfig(t)}, f))
		if _, err := join.DescribeTAP(f); err != nil {
			t.Error(err)
		}
	}
}

// TestHandedTAPRefusals: what takes the network namespace, and what is no TAP.
func TestHandedTAPRefusals(t *testing.T) {
	b := newBox(t)
	for want, change := range map[string]func(*Config){
		"--tcp=express":        func(c *Config) { c.TCP = TCPExpress },
		"container's listener": func(c *Config) { c.PublishAuto = true },
	} {
		cfg := baseConfig(t)
		change(&cfg)
		l := begin(t, order{TAP: true, Config: cfg}, b.tap(t, "mytap"+strconv.Itoa(len(want)), false))
		if code := l.wait(t); code != ExitFailed || !strings.Contains(l.stderr.String(), want) || !strings.Contains(l.stderr.String(), errNoNetNS.Error()) {
			t.Errorf("exit code %d, %q, want it refused with %q", code, l.stderr, want)
		}
	}
	r, _ := pipe(t)
	l := begin(t, order{TAP: true, Config: baseConfig(t)}, r)
	if code := l.wait(t); code != ExitFailed || !strings.Contains(l.stderr.String(), join.ErrNoTAP.Error()) {
		t.Errorf("exit code %d, %q for a pipe", code, l.stderr)
	}
}

// TestHandedTAPEngineDies: another engine serves the same TAP.
func TestHandedTAPEngineDies(t *testing.T) {
	b := newBox(t)
	f := b.tap(t, "mytap", false)
	l := start(t, order{TAP: true, Config: baseConfig(t)}, f)
	b.configure(t, "mytap", "10.0.2.100/24")
	b.reaches(t, host4)
	first := l.status(t).EnginePID
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "another engine", func() bool {
		s := l.status(t)
		return s.EngineReady && s.EnginePID != first
	})
	b.reaches(t, host4)
	l.leave(t)
}

// TestSlirp4netnsSocket: the socket is there when we say ready, and gone at the end.
func TestSlirp4netnsSocket(t *testing.T) {
	b, cfg := newBox(t), baseConfig(t)
	cfg.Slirp4netnsSocket = filepath.Join(t.TempDir(), "api.sock")
	l := start(t, order{NetNS: b.path, Config: cfg}, nil)
	conn, err := net.Dial("unix", cfg.Slirp4netnsSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":18081,"guest_port":80}}`)); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.UnixConn).CloseWrite()
	buf := make([]byte, 512)
	n, _ := conn.Read(buf)
	if !strings.Contains(string(buf[:n]), `"return"`) {
		t.Fatalf("add_hostfwd: %q", buf[:n])
	}
	b.published(t, "10.0.2.100:80", "127.0.0.1:18081")
	l.leave(t)
	if _, err := os.Lstat(cfg.Slirp4netnsSocket); !os.IsNotExist(err) {
		t.Errorf("the socket at the end: %v, want it gone", err)
	}
}
