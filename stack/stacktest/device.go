package stacktest

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/tap"
)

// Ethernet addresses of the two ends of a pair; the gateway's is the engine's.
var (
	GatewayMAC   = [6]byte{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
	ContainerMAC = [6]byte{0x02, 0x00, 0x00, 0x00, 0x01, 0x00}
)

// AllOffloads is what a recent kernel grants.
var AllOffloads = tap.Offloads{Csum: true, TSO: true, USO: true}

// queueLen bounds both directions of a pair, in frames.
const queueLen = 1024

// Patience is how long the helpers of this package wait for something that must
// happen. It only bounds a failing test.
const Patience = 20 * time.Second

// WireFrame is a frame with the virtio-net header that stands before it.
type WireFrame struct {
	Header tap.Header
	Bytes  []byte
}

// wire is what the two ends share.
type wire struct {
	in, out chan WireFrame
	closed  chan struct{}
	once    sync.Once
	discard atomic.Bool
	written atomic.Uint64
	refusal atomic.Pointer[error]
}

// Device is the engine's end of a pair. It implements stack.Device.
type Device struct {
	w        *wire
	offloads tap.Offloads
	usoOff   atomic.Bool
	idle     func()
}

// Peer is the test's end of a pair.
type Peer struct{ w *wire }

// NewPair makes a device that grants the offloads, and its far end.
func NewPair(offloads tap.Offloads) (*Device, *Peer) {
	w := &wire{in: make(chan WireFrame, queueLen), out: make(chan WireFrame, queueLen), closed: make(chan struct{})}
	return &Device{w: w, offloads: offloads}, &Peer{w: w}
}

// Readv is tap.Device's.
func (d *Device) Readv(hdr []byte, bufs ...[]byte) (int, error) {
	f, err := d.next()
	if err != nil {
		return 0, err
	}
	f.Header.Put(hdr)
	if f.Header.DataValid {
		hdr[0] |= 2 // VIRTIO_NET_HDR_F_DATA_VALID, which Put never writes
	}
	n, rest := 0, f.Bytes
	for _, b := range bufs {
		k := copy(b, rest)
		n, rest = n+k, rest[k:]
	}
	return n, nil
}

func (d *Device) next() (WireFrame, error) {
	select {
	case <-d.w.closed:
		return WireFrame{}, os.ErrClosed
	default:
	}
	select {
	case f := <-d.w.in:
		return f, nil
	default:
	}
	if d.idle != nil {
		d.idle()
	}
	select {
	case <-d.w.closed:
		return WireFrame{}, os.ErrClosed
	case f := <-d.w.in:
		return f, nil
	}
}

// Writev is tap.Device's.
func (d *Device) Writev(iov []unix.Iovec) error {
	if len(iov) == 0 || iov[0].Len < tap.HeaderLen+14 {
		return fmt.Errorf("write to the fake device: frame shorter than its Ethernet header")
	}
	select {
	case <-d.w.closed:
		return os.ErrClosed
	default:
	}
	header, ok := tap.ParseHeader(unsafe.Slice(iov[0].Base, tap.HeaderLen))
	if !ok {
		return fmt.Errorf("write to the fake device: %w", unix.EINVAL)
	}
	if e := d.w.refusal.Load(); e != nil && header.GSO == tap.GSOUDP {
		return *e
	}
	d.w.written.Add(1)
	if d.w.discard.Load() {
		return nil
	}
	var b []byte
	for _, v := range iov {
		b = append(b, unsafe.Slice(v.Base, int(v.Len))...)
	}
	select {
	case d.w.out <- WireFrame{header, b[tap.HeaderLen:]}:
		return nil
	case <-d.w.closed:
		return os.ErrClosed
	}
}

// Offloads is tap.Device's.
func (d *Device) Offloads() tap.Offloads {
	o := d.offloads
	o.USO = o.USO && !d.usoOff.Load()
	return o
}

// DisableUSO is tap.Device's.
func (d *Device) DisableUSO() bool { return d.usoOff.CompareAndSwap(false, true) }

// OnIdle is tap.Device's.
func (d *Device) OnIdle(fn func()) { d.idle = fn }

// Close is tap.Device's.
func (d *Device) Close() error {
	d.w.once.Do(func() { close(d.w.closed) })
	return nil
}

// Inject puts a frame on the wire. It waits while the engine does not keep up.
// After Close of the device the frame is lost.
func (p *Peer) Inject(tb testing.TB, h tap.Header, frame []byte) {
	tb.Helper()
	select {
	case p.w.in <- WireFrame{h, bytes.Clone(frame)}:
		return
	default:
	}
	select {
	case p.w.in <- WireFrame{h, bytes.Clone(frame)}:
	case <-p.w.closed:
	case <-time.After(Patience):
		tb.Fatal("the engine reads no frames")
	}
}

// InjectIP is Inject of an IP packet whose checksums are complete.
func (p *Peer) InjectIP(tb testing.TB, packet []byte) {
	tb.Helper()
	p.Inject(tb, tap.Header{}, Frame(packet))
}

// Receive returns the next frame that the engine wrote.
func (p *Peer) Receive(tb testing.TB) WireFrame {
	tb.Helper()
	select {
	case f := <-p.w.out:
		return f
	case <-time.After(Patience):
		tb.Fatal("the engine wrote no frame")
		return WireFrame{}
	}
}

// ReceiveWhere returns the next frame for which ok holds and drops those before.
func (p *Peer) ReceiveWhere(tb testing.TB, ok func(WireFrame) bool) WireFrame {
	tb.Helper()
	for {
		if f := p.Receive(tb); ok(f) {
			return f
		}
	}
}

// Pending takes the next frame that is there already.
func (p *Peer) Pending() (f WireFrame, ok bool) {
	select {
	case f := <-p.w.out:
		return f, true
	default:
		return WireFrame{}, false
	}
}

// Silent fails the test if a frame is there. What the frame would be an answer
// to must have been dealt with.
func (p *Peer) Silent(tb testing.TB) {
	tb.Helper()
	if f, ok := p.Pending(); ok {
		tb.Errorf("the engine wrote a frame of %d bytes: % x", len(f.Bytes), f.Bytes[:min(len(f.Bytes), 64)])
	}
}

// Drained waits until the engine has taken every injected frame out of the queue.
// The last one may still be in its hands.
func (p *Peer) Drained(tb testing.TB) {
	tb.Helper()
	Eventually(tb, "the engine to take all frames", func() bool { return len(p.w.in) == 0 })
}

// Discard makes the wire drop what the engine writes.
func (p *Peer) Discard() { p.w.discard.Store(true) }

// Written returns how many frames the engine has written.
func (p *Peer) Written() uint64 { return p.w.written.Load() }

// RefuseUSO makes writes of UDP super-segments fail with err.
func (p *Peer) RefuseUSO(err error) { p.w.refusal.Store(&err) }

// Eventually polls until ok holds, and fails the test with what is missing.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(Patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited %v in vain for %s", Patience, what)
		}
	}
}
