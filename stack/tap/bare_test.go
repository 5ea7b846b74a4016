package tap_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

// TestBareTAP: a TAP without a vnet header carries plain frames, says so, and refuses
// what only a header can say.
func TestBareTAP(t *testing.T) {
	l := newLine(t, tap.BareTAP)
	if o := l.dev.Offloads(); o != (tap.Offloads{}) || l.dev.Notice() == "" {
		t.Errorf("offloads %s, notice %q", o, l.dev.Notice())
	}
	out := append(append(append([]byte{}, l.g.MAC[:]...), 2, 0, 0, 0, 0, 1, testType>>8, testType&0xff), pattern(900)...)
	if err := write(l.dev, tap.Header{}, out); err != nil {
		t.Fatal(err)
	}
	if _, got := read(t, l.far, isTest); !bytes.Equal(got, out) {
		t.Errorf("the container got %d bytes, want %d", len(got), len(out))
	}
	in := append(append(append([]byte{}, 2, 0, 0, 0, 0, 1), l.g.MAC[:]...), out[12:]...)
	if err := write(l.far, tap.Header{}, in); err != nil {
		t.Fatal(err)
	}
	hdr, buf := bytes.Repeat([]byte{0xff}, tap.HeaderLen), make([]byte, 2048)
	for {
		n, err := l.dev.Readv(hdr, buf)
		if err != nil {
			t.Fatal(err)
		}
		if !isTest(buf[:n]) {
			continue
		}
		if !bytes.Equal(buf[:n], in) || !bytes.Equal(hdr, make([]byte, tap.HeaderLen)) {
			t.Errorf("the engine got %d bytes with header % x, want %d", n, hdr, len(in))
		}
		break
	}
	for _, h := range []tap.Header{{NeedsCsum: true, CsumStart: 34, CsumOffset: 16}, {GSO: tap.GSOUDP, Segment: 100}} {
		if err := write(l.dev, h, out); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%+v: %v, want EINVAL", h, err)
		}
	}
}

// TestBareTAPAfterOffloads: an interface that somebody had with offloads has none left.
func TestBareTAPAfterOffloads(t *testing.T) {
	g := guest.New(t, tap.BareTAP, 1500)
	if err := unix.IoctlSetInt(int(g.Device.Fd()), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4); err != nil {
		t.Fatal(err)
	}
	g.Do(t, func() error { return nstest.AddAddr(guest.Name, netip.MustParsePrefix("10.0.2.100/24")) })
	dev, err := tap.New(g.Device, tap.BareTAP)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	g.Do(t, func() error { return broadcast(pattern(1001)) })
	_, frame := read(t, dev, isProto(unix.IPPROTO_UDP))
	h, _ := inet.Parse(frame[14:])
	segment := h.Payload(frame[14:])
	if got := inet.Checksum(segment, inet.PseudoSum(h.Src, h.Dst, h.Proto, len(segment))); got != 0 {
		t.Errorf("the datagram's checksum is off by %#x", got)
	}
}

// broadcast sends a datagram that needs no neighbour.
func broadcast(payload []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		unix.BindToDevice(fd, guest.Name),
		unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: [4]byte{255, 255, 255, 255}, Port: 9}),
	)
}
