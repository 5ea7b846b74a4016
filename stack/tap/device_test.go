package tap_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

// testType marks frames of this test: an Ethernet type for local experiments
// (IEEE 802, clause 9.2.4), which no kernel sends by itself.
const testType = 0x88b5

// both runs the same body over a TAP and over a packet socket.
func both(t *testing.T, body func(t *testing.T, l *line)) {
	for _, kind := range guest.Kinds {
		t.Run(kind.String(), func(t *testing.T) { body(t, newLine(t, kind)) })
	}
}

// line is a device, and a packet socket on the guest's interface behind it.
type line struct {
	dev *tap.Device
	far *tap.Device
	g   *guest.Guest
}

func newLine(t *testing.T, kind tap.Kind) *line {
	t.Helper()
	stacktest.NoLeaks(t)
	g := guest.New(t, kind, 1500)
	dev, err := tap.New(g.Device, kind)
	if err != nil {
		t.Fatal(err)
	}
	l := &line{dev: dev, g: g}
	var fd int
	g.Do(t, func() (err error) {
		fd, err = guest.OpenPacket(guest.Name)
		return err
	})
	if l.far, err = tap.New(os.NewFile(uintptr(fd), "far"), tap.Packet); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.dev.Close()
		l.far.Close()
	})
	return l
}

// write sends a frame in several pieces, as the engine does.
func write(d *tap.Device, h tap.Header, frame []byte) error {
	head := min(len(frame), 54)
	first := append(make([]byte, tap.HeaderLen), frame[:head]...)
	h.Put(first)
	iov := []unix.Iovec{{Base: &first[0]}}
	iov[0].SetLen(len(first))
	for rest := frame[head:]; len(rest) > 0; {
		n := min(len(rest), 20000)
		v := unix.Iovec{Base: &rest[0]}
		v.SetLen(n)
		iov, rest = append(iov, v), rest[n:]
	}
	return d.Writev(iov)
}

// read returns the next frame for which ok holds, scattered over small buffers.
func read(t *testing.T, d *tap.Device, ok func([]byte) bool) (tap.Header, []byte) {
	t.Helper()
	timer := time.AfterFunc(stacktest.Patience, func() { d.Close() })
	defer timer.Stop()
	head, body := make([]byte, 128), make([]byte, 64<<10)
	for {
		hdr := make([]byte, tap.HeaderLen)
		n, err := d.Readv(hdr, head, body)
		if err != nil {
			t.Fatalf("no frame: %v", err)
		}
		frame := bytes.Clone(append(head[:len(head):len(head)], body...)[:n])
		if !ok(frame) {
			continue
		}
		h, valid := tap.ParseHeader(hdr)
		if !valid {
			t.Fatalf("header % x", hdr)
		}
		return h, frame
	}
}

func isTest(frame []byte) bool {
	return len(frame) >= 14 && frame[12] == testType>>8 && frame[13] == testType&0xff
}

func isProto(proto uint8) func([]byte) bool {
	return func(frame []byte) bool {
		if len(frame) < 14 {
			return false
		}
		h, ok := inet.Parse(frame[14:])
		return ok && h.Proto == proto
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestOffloadsAreProbed(t *testing.T) {
	both(t, func(t *testing.T, l *line) {
		o := l.dev.Offloads()
		t.Logf("%s: %s", l.dev.Kind(), o)
		if !o.Csum || !o.TSO {
			t.Errorf("offloads %s", o)
		}
		if n := l.dev.Notice(); n != "" {
			t.Errorf("notice %q", n)
		}
		if !o.USO {
			return // Linux before 6.2
		}
		if !l.dev.DisableUSO() || l.dev.Offloads().USO || l.dev.DisableUSO() {
			t.Error("DisableUSO did not take effect exactly once")
		}
	})
}

func TestFramesPassBothWays(t *testing.T) {
	both(t, func(t *testing.T, l *line) {
		for _, size := range []int{46, 47, 100, 113, 114, 115, 1000, 1499, 1500} {
			frame := stacktest.Ethernet(l.g.MAC, stacktest.GatewayMAC, testType, pattern(size))
			for _, way := range []struct {
				name     string
				from, to *tap.Device
			}{{"in", l.dev, l.far}, {"out", l.far, l.dev}} {
				if err := write(way.from, tap.Header{}, frame); err != nil {
					t.Fatalf("%s, %d bytes: %v", way.name, size, err)
				}
				if h, got := read(t, way.to, isTest); !bytes.Equal(got, frame) || h.GSO != tap.GSONone || h.NeedsCsum {
					t.Errorf("%s, %d bytes: header %+v, frame % x", way.name, size, h, got[:min(len(got), 40)])
				}
			}
		}
	})
}

func TestSuperSegmentsPassBothWays(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.0.2.2:80"), netip.MustParseAddrPort("10.0.2.100:4000")
	src6, dst6 := netip.MustParseAddrPort("[fd00::2]:80"), netip.MustParseAddrPort("[fd00::100]:4000")
	payload := pattern(60000)
	for _, c := range []struct {
		name    string
		gso     tap.GSO
		proto   uint8
		packet  []byte
		hdrLen  int
		segment int
	}{
		{"TCP over IPv4", tap.GSOTCPv4, inet.ProtoTCP, stacktest.Segment{Src: src, Dst: dst, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: payload}.Packet(), 54, 1448},
		{"TCP over IPv6", tap.GSOTCPv6, inet.ProtoTCP, stacktest.Segment{Src: src6, Dst: dst6, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: payload}.Packet(), 74, 1428},
		{"UDP over IPv4", tap.GSOUDP, inet.ProtoUDP, stacktest.Datagram(src, dst, payload), 42, 1400},
		{"UDP over IPv6", tap.GSOUDP, inet.ProtoUDP, stacktest.Datagram(src6, dst6, payload), 62, 1400},
	} {
		t.Run(c.name, func(t *testing.T) {
			both(t, func(t *testing.T, l *line) {
				if c.gso == tap.GSOUDP && !l.dev.Offloads().USO {
					t.Skip("the kernel knows no UDP super-segments (Linux before 6.2)")
				}
				h := stacktest.Partial(c.packet)
				h.GSO, h.Segment, h.HdrLen = c.gso, uint16(c.segment), uint16(c.hdrLen)
				frame := stacktest.Ethernet(l.g.MAC, stacktest.GatewayMAC, etherType(c.packet), c.packet)
				for _, way := range []struct {
					name     string
					from, to *tap.Device
				}{{"in", l.dev, l.far}, {"out", l.far, l.dev}} {
					if err := write(way.from, h, frame); err != nil {
						t.Fatalf("%s: %v", way.name, err)
					}
					got, f := read(t, way.to, isProto(c.proto))
					if got.GSO != c.gso || int(got.Segment) != c.segment || !got.NeedsCsum || got.CsumStart != h.CsumStart || got.CsumOffset != h.CsumOffset {
						t.Errorf("%s: header %+v, sent %+v", way.name, got, h)
					}
					if !bytes.Equal(f, frame) {
						t.Errorf("%s: %d bytes arrived changed, sent %d", way.name, len(f), len(frame))
					}
				}
			})
		})
	}
}

func etherType(packet []byte) uint16 {
	if packet[0]>>4 == 6 {
		return 0x86dd
	}
	return 0x0800
}

func TestCloseWakesTheReader(t *testing.T) {
	both(t, func(t *testing.T, l *line) {
		idle := make(chan struct{}, 100)
		l.dev.OnIdle(func() {
			select {
			case idle <- struct{}{}:
			default:
			}
		})
		ended := make(chan error, 1)
		go func() {
			hdr, buf := make([]byte, tap.HeaderLen), make([]byte, 2000)
			for {
				if _, err := l.dev.Readv(hdr, buf); err != nil {
					ended <- err
					return
				}
			}
		}()
		select {
		case <-idle:
		case <-time.After(stacktest.Patience):
			t.Fatal("OnIdle's function was not called before the wait")
		}
		if err := l.dev.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("reader ended with %v", err)
			}
		case <-time.After(stacktest.Patience):
			t.Fatal("the reader still waits")
		}
		if err := write(l.dev, tap.Header{}, make([]byte, 60)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		if err := l.dev.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestConcurrentWriters(t *testing.T) {
	const writers, each = 8, 100
	both(t, func(t *testing.T, l *line) {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					frame := stacktest.Ethernet(l.g.MAC, stacktest.GatewayMAC, testType, stacktest.Pad([]byte{byte(w), byte(i)}, 200))
					if err := write(l.dev, tap.Header{}, frame); err != nil {
						t.Errorf("writer %d: %v", w, err)
						return
					}
				}
			})
		}
		var next [writers]byte
		for range writers * each {
			_, f := read(t, l.far, isTest)
			w, i := f[14], f[15]
			if len(f) != 214 || i != next[w] {
				t.Fatalf("frame %d of writer %d with %d bytes, expected frame %d", i, w, len(f), next[w])
			}
			next[w]++
		}
		wg.Wait()
	})
}

func TestRuntsAreRefused(t *testing.T) {
	both(t, func(t *testing.T, l *line) {
		for n := range 14 {
			if err := write(l.dev, tap.Header{}, make([]byte, n)); err == nil {
				t.Errorf("a frame of %d bytes was written", n)
			}
		}
		if err := l.dev.Writev(nil); err == nil {
			t.Error("no frame was written without an error")
		}
	})
}

func TestFrameLargerThanTheBuffersIsCut(t *testing.T) {
	both(t, func(t *testing.T, l *line) {
		frame := stacktest.Ethernet(l.g.MAC, stacktest.GatewayMAC, testType, pattern(1000))
		small := stacktest.Ethernet(l.g.MAC, stacktest.GatewayMAC, testType, pattern(50))
		for _, f := range [][]byte{frame, small} {
			if err := write(l.far, tap.Header{}, f); err != nil {
				t.Fatal(err)
			}
		}
		hdr, buf := make([]byte, tap.HeaderLen), make([]byte, 100)
		var sizes []int
		for len(sizes) < 2 {
			n, err := l.dev.Readv(hdr, buf)
			if err != nil {
				t.Fatal(err)
			}
			if isTest(buf[:n]) {
				sizes = append(sizes, n)
			}
		}
		if sizes[0] != 100 || sizes[1] != 64 {
			t.Errorf("sizes %v, want 100 of a cut frame and 64 of a whole one", sizes)
		}
	})
}

// The interface may go down and come up again; a reader lives through that.
func TestReaderSurvivesInterfaceDown(t *testing.T) {
	both(t, func(t *testing.T, l *line) {
		frame := stacktest.Ethernet(stacktest.GatewayMAC, l.g.MAC, testType, pattern(50))
		got := make(chan error, 1)
		go func() {
			hdr, buf := make([]byte, tap.HeaderLen), make([]byte, 2000)
			for {
				n, err := l.dev.Readv(hdr, buf)
				if err != nil || isTest(buf[:n]) {
					got <- err
					return
				}
			}
		}()
		l.g.Down(t)
		l.g.Up(t)
		for end := time.Now().Add(stacktest.Patience); ; {
			if err := write(l.far, tap.Header{}, frame); err != nil && !errors.Is(err, unix.ENETDOWN) {
				t.Fatal(err)
			}
			select {
			case err := <-got:
				if err != nil {
					t.Fatal(err)
				}
				return
			case <-time.After(20 * time.Millisecond):
			}
			if time.Now().After(end) {
				t.Fatal("no frame after the interface came up again")
			}
		}
	})
}

func TestNewRefusesWhatIsNoDevice(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, kind := range guest.Kinds {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		if _, err := tap.New(r, kind); err == nil {
			t.Errorf("a pipe was adopted as a %s device", kind)
		}
		if err := r.Close(); err == nil {
			t.Errorf("New of kind %s left the file open", kind)
		}
	}
}

// A packet socket whose send buffer holds hardly one frame makes the writer wait:
// every frame arrives.
func TestSmallSendBufferLosesNothing(t *testing.T) {
	const frames = 2000
	stacktest.NoLeaks(t)
	g := guest.New(t, tap.Packet, 1500)
	shared, err := unix.FcntlInt(g.Device.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shared)
	dev, err := tap.New(g.Device, tap.Packet)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := unix.SetsockoptInt(shared, unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		t.Fatal(err)
	}
	// Where the frames go: a socket of the guest with a large receive buffer.
	server, err := listenIn(t, g.Namespace, "10.0.2.100")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	go func() {
		from, to := netip.MustParseAddrPort("10.0.2.2:7"), netip.MustParseAddrPort("10.0.2.100:7000")
		for i := range frames {
			packet := stacktest.Datagram(from, to, fmt.Appendf(nil, "%04d", i))
			if err := write(dev, tap.Header{}, stacktest.Ethernet(g.MAC, stacktest.GatewayMAC, 0x0800, packet)); err != nil {
				t.Errorf("frame %d: %v", i, err)
				return
			}
		}
	}()
	buf := make([]byte, 100)
	for i := range frames {
		n, _, err := unix.Recvfrom(server, buf, 0)
		if err != nil || string(buf[:n]) != fmt.Sprintf("%04d", i) {
			t.Fatalf("datagram %d: %q, %v", i, buf[:n], err)
		}
	}
}

// listenIn returns a UDP socket on port 7000 of the guest, with a receive timeout.
func listenIn(t *testing.T, ns *nstest.Namespace, addr string) (fd int, err error) {
	ns.Do(t, func() error {
		a := netip.MustParseAddr(addr)
		if err := nstest.AddAddr(guest.Name, netip.PrefixFrom(a, 24)); err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(stacktest.Patience))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Port: 7000, Addr: a.As4()})
	})
	return fd, err
}
