package express

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/spawn"
)

// TestMain lets the test binary be the namespaces' first inhabitant, which lives
// until its standard input ends.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if os.Args[0] == "inhabitant" {
		os.Stdout.Write([]byte("!"))
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const patience = 15 * time.Second

var (
	container4 = netip.MustParseAddr("10.0.2.100")
	container6 = netip.MustParseAddr("fd00::100")
	remote4    = netip.MustParseAddrPort("203.0.113.7:443")
	remote6    = netip.MustParseAddrPort("[2001:db8::7]:443")
	gatewayMAC = []byte{2, 0, 0, 0, 0, 1}
)

// inhabited makes namespaces whose inhabitant lives until the test or end ends it.
func inhabited(t testing.TB) (target *join.Target, end func()) {
	t.Helper()
	mode := spawn.Auto
	if os.Getenv("POSTERN_TEST_READONLY") != "" {
		mode = spawn.Single // one id is all that there is
	}
	maps, err := spawn.PlanMaps(context.Background(), mode)
	check(t, err)
	in, keep, err := os.Pipe()
	check(t, err)
	ready, out, err := os.Pipe()
	check(t, err)
	defer ready.Close()
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in, out, os.Stderr}, Pdeathsig: unix.SIGKILL,
	})
	in.Close()
	out.Close()
	check(t, err)
	t.Cleanup(func() { keep.Close(); p.Close() })
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		t.Fatalf("the inhabitant did not come up: %v", err)
	}
	target, err = join.OpenPID(p.PID)
	check(t, err)
	t.Cleanup(func() { target.Close() })
	return target, func() { keep.Close(); p.Close() }
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// endpoint is how the engine sees the container.
type endpoint struct {
	name   string
	packet bool
	mtu    int
}

var endpoints = []endpoint{{"tap", false, 65520}, {"tap1500", false, 1500}, {"packet", true, 65520}, {"packet1500", true, 1500}}

// world is a container's network and a tiny engine behind its interface.
type world struct {
	target *join.Target
	end    func() // of the container
	path   *Path
	route  *os.File
	dev    *os.File
	vnet   int // size of the header before each frame

	mu     sync.Mutex
	frames []frame
	came   chan struct{}
}

// newWorld makes a world of an endpoint, without the express path. Where only root may
// open /dev/net/tun, an ordinary user gets a packet socket instead; root, for whom every
// test runs too, has the TAP.
func newWorld(t testing.TB, e endpoint) *world {
	t.Helper()
	w := &world{came: make(chan struct{}, 1)}
	w.target, w.end = inhabited(t)
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		f.Close()
	} else if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		e.packet = true
	} else if tt, ok := t.(*testing.T); ok && !e.packet {
		usertest.Missing(tt, "%v", err)
	}
	req := join.Request{Packet: e.packet}
	if !e.packet {
		req.TAP = "tap0"
	}
	s, err := w.target.Open(req)
	check(t, err)
	t.Cleanup(func() { s.Close() })
	w.route, w.dev, w.vnet = s.Route, s.TAP, 12
	if e.packet {
		w.dev, w.vnet = s.Packet, 10
		check(t, unix.SetsockoptInt(int(w.dev.Fd()), unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
		check(t, rtnl.AddVeth(s.Route, "tap0", "far0", s.FarNetNS))
		index, err := rtnl.FarUp(s.FarRoute, "far0", e.mtu)
		check(t, err)
		check(t, rtnl.BindPacket(s.Packet, index))
	} else {
		// TUN_F_CSUM, TSO4, TSO6, USO4, USO6 (linux/if_tun.h)
		check(t, unix.IoctlSetInt(int(w.dev.Fd()), unix.TUNSETOFFLOAD, 1|2|4|0x20|0x40))
	}
	link, err := rtnl.Configure(s.Route, rtnl.Interface{
		Name: "tap0", MTU: e.mtu, TxQueueLen: 500,
		Addrs:    []netip.Prefix{netip.PrefixFrom(container4, 24), netip.PrefixFrom(container6, 64)},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")},
	})
	check(t, err)
	for _, gw := range []string{"10.0.2.2", "fd00::2"} {
		w.neighbour(t, link.Index, netip.MustParseAddr(gw))
	}
	w.start(t)
	return w
}

// neighbour spares the engine ARP and NDP.
func (w *world) neighbour(t testing.TB, index int, a netip.Addr) {
	t.Helper()
	family := byte(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	b := []byte{family, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = append(binary.NativeEndian.AppendUint16(b, unix.NUD_PERMANENT), 0, 0)
	b = rtnl.AppendAttribute(b, unix.NDA_DST, a.AsSlice())
	b = rtnl.AppendAttribute(b, unix.NDA_LLADDR, gatewayMAC)
	check(t, rtnl.Batch(w.route, []rtnl.Request{{Op: "add neighbour", Kind: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: b}}))
}

// express installs the path.
func (w *world) express(t testing.TB) {
	t.Helper()
	p, err := Install(w.target, Config{Interface: "tap0", V4: container4, V6: container6, UDP: true})
	check(t, err)
	w.path = p
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if p.Notice != "" {
		t.Errorf("notice: %s", p.Notice)
	}
}

// start reads frames until the test ends.
func (w *world) start(t testing.TB) {
	t.Helper()
	wake, stop, err := os.Pipe()
	check(t, err)
	done := make(chan struct{})
	fd, wakeFD := int(w.dev.Fd()), int(wake.Fd())
	check(t, unix.SetNonblock(fd, true))
	go func() {
		defer close(done)
		buf := make([]byte, 80_000)
		for {
			polls := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wakeFD), Events: unix.POLLIN}}
			if _, err := unix.Poll(polls, -1); err != nil && err != unix.EINTR || polls[1].Revents != 0 {
				return
			}
			if n, err := unix.Read(fd, buf); err == nil && n > w.vnet+14 {
				w.record(buf[:n])
			}
		}
	}()
	t.Cleanup(func() { stop.Close(); <-done; wake.Close() })
}

// frame is a packet that crossed the interface outwards.
type frame struct {
	raw      []byte
	proto    byte
	src, dst netip.AddrPort
	flags    byte
	payload  []byte
}

func (f frame) syn() bool { return f.proto == unix.IPPROTO_TCP && f.flags&0x17 == 2 }

func (w *world) record(b []byte) {
	f, ok := parseFrame(append([]byte(nil), b...), w.vnet)
	if !ok {
		return
	}
	w.mu.Lock()
	w.frames = append(w.frames, f)
	w.mu.Unlock()
	select {
	case w.came <- struct{}{}:
	default:
	}
}

func parseFrame(b []byte, vnet int) (f frame, ok bool) {
	f.raw = b
	ip := b[vnet+14:]
	var src, dst netip.Addr
	var at int
	switch {
	case len(ip) >= 28 && ip[0]>>4 == 4:
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
		f.proto, at = ip[9], int(ip[0]&15)*4
	case len(ip) >= 48 && ip[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(ip[8:24])
		dst, _ = netip.AddrFromSlice(ip[24:40])
		f.proto, at = ip[6], 40
	default:
		return f, false
	}
	l4 := ip[at:]
	if len(l4) < 8 {
		return f, false
	}
	f.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(l4))
	f.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:]))
	switch {
	case f.proto == unix.IPPROTO_UDP:
		f.payload = l4[8:]
	case f.proto == unix.IPPROTO_TCP && len(l4) >= 20:
		f.flags = l4[13]
	}
	return f, true
}

// seen are the frames so far to a remote.
func (w *world) seen(remote netip.AddrPort) (list []frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		if f.dst == remote {
			list = append(list, f)
		}
	}
	return list
}

// await waits until n frames to a remote have come and returns the last one.
func (w *world) await(t testing.TB, remote netip.AddrPort, n int) frame {
	t.Helper()
	deadline := time.After(patience)
	for {
		if list := w.seen(remote); len(list) >= n {
			return list[n-1]
		}
		select {
		case <-w.came:
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%d frames to %s, want %d", len(w.seen(remote)), remote, n)
		}
	}
}

// forget empties the record.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = nil
}

// writeBack writes a frame back, from the gateway to the container.
func (w *world) writeBack(t testing.TB, f frame) {
	t.Helper()
	b := append([]byte(nil), f.raw...)
	eth := b[w.vnet:]
	var mac [6]byte
	copy(mac[:], eth[6:12])
	copy(eth[6:12], eth[0:6])
	copy(eth[0:6], mac[:])
	if _, err := unix.Write(int(w.dev.Fd()), b); err != nil {
		t.Fatalf("write a frame back: %v", err)
	}
}

// socket makes a nonblocking socket of the container's.
func (w *world) socket(t testing.TB, remote netip.Addr, kind int) int {
	t.Helper()
	domain := unix.AF_INET
	if remote.Is6() {
		domain = unix.AF_INET6
	}
	list, _, err := w.target.Make([]join.Socket{{What: "make a client", Domain: domain, Type: kind}})
	check(t, err)
	check(t, setNonblock(list[0]))
	fd, err := unix.Dup(int(list[0].Fd()))
	check(t, err)
	list[0].Close()
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// in runs a shell script in the container's network and returns what it prints.
func (w *world) in(t testing.TB, script string) string {
	t.Helper()
	r, pw, err := os.Pipe()
	check(t, err)
	defer r.Close()
	p, err := w.target.Start(context.Background(), join.Command{
		Path: "/bin/sh", Argv: []string{"sh", "-c", "PATH=/usr/sbin:/sbin:$PATH;" + script}, Files: []*os.File{nil, pw, pw},
	})
	pw.Close()
	check(t, err)
	defer p.Close()
	out, err := io.ReadAll(r)
	check(t, err)
	if status, err := p.Wait(); err != nil || status.ExitStatus() != 0 {
		t.Errorf("%s: status %v, %v, output %q", script, status, err, out)
	}
	return string(out)
}

// needs skips the test where a program is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		_, err := os.Stat("/usr/sbin/" + p)
		if err != nil {
			_, err = os.Stat("/usr/bin/" + p)
		}
		if err != nil {
			usertest.Missing(t, "needs %s: %v", p, err)
		}
	}
}

// ready waits until a socket can be read or written.
func ready(fd int, events int16, d time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: events}}
	end := time.Now().Add(d)
	for {
		n, err := unix.Poll(poll, int(max(0, time.Until(end).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 1
		}
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("missing %q in\n%s", p, text)
		}
	}
}

// catchAll gets a duplicate of the socket as the engine does.
func (w *world) catchAll(remote netip.AddrPort) *os.File {
	if remote.Addr().Is6() {
		return w.path.UDP6
	}
	return w.path.UDP4
}

// to are the frames so far to a remote address.
func (w *world) to(remote netip.Addr) (list []frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		if f.dst.Addr() == remote {
			list = append(list, f)
		}
	}
	return list
}

// closeKeepingNumber closes a socket whose number a cleanup closes once more.
func (w *world) closeKeepingNumber(t testing.TB, fd int) {
	t.Helper()
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(t, err)
	check(t, unix.Dup3(null, fd, unix.O_CLOEXEC))
	unix.Close(null)
}

// answerSYN writes a SYN-ACK from outside, IPv4 only.
func (w *world) answerSYN(t testing.TB, syn frame) {
	t.Helper()
	b := make([]byte, w.vnet+14+40)
	copy(b[w.vnet:], syn.raw[w.vnet+6:w.vnet+12])
	copy(b[w.vnet+6:], syn.raw[w.vnet:w.vnet+6])
	copy(b[w.vnet+12:], []byte{8, 0})
	ip := b[w.vnet+14:]
	copy(ip, []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP})
	copy(ip[12:], syn.dst.Addr().AsSlice())
	copy(ip[16:], syn.src.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:20]))
	tcp := ip[20:]
	binary.BigEndian.PutUint16(tcp, syn.dst.Port())
	binary.BigEndian.PutUint16(tcp[2:], syn.src.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	binary.BigEndian.PutUint32(tcp[8:], binary.BigEndian.Uint32(syn.raw[w.vnet+14+20+4:])+1)
	copy(tcp[12:], []byte{0x50, 0x12, 0xff, 0xff})
	binary.BigEndian.PutUint16(tcp[16:], checksum(unix.IPPROTO_TCP+20, ip[12:40]))
	if _, err := unix.Write(int(w.dev.Fd()), b); err != nil {
		t.Fatal(err)
	}
}

// checksum is the Internet checksum (RFC 1071).
func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
