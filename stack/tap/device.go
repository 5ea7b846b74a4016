package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a TAP, a packet socket or a seqpacket socket. Create it with New.
type Device struct {
	kind     Kind
	file     *os.File
	raw      syscall.RawConn
	fd       int
	offloads Offloads
	usoOff   atomic.Bool
	stalled  atomic.Bool // the other side of a seqpacket socket takes no frames

	// closing lets writers use fd without the poller's lock: Close waits for
	// them before the number can be reused.
	closing sync.RWMutex
	closed  bool // guarded by closing

	read readState
}

// readState is what the one reader's poller callback works on; it lives in the
// Device so that a read allocates nothing.
type readState struct {
	fn    func(fd uintptr) bool
	idle  func()
	down  bool // the link is, and no frame has come since
	iov   []unix.Iovec
	msg   unix.Msghdr // for a seqpacket socket
	n     int
	errno syscall.Errno
}

// New takes ownership of f, also when it fails, and probes what its kernel
// offers. f must be a TAP made with IFF_NO_PI and, but for BareTAP, IFF_VNET_HDR,
// or a bound packet socket, or a connected socket of the type SOCK_SEQPACKET.
func New(f *os.File, kind Kind) (*Device, error) {
	d, err := adopt(f, kind)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("adopt %s device: %w", kind, err)
	}
	return d, nil
}

func adopt(f *os.File, kind Kind) (*Device, error) {
	fd := int(f.Fd())
	// A descriptor joins Go's poller only if it is non-blocking when it is wrapped.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("make it non-blocking: %w", err)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor: %w", err)
	}
	pollable := os.NewFile(uintptr(own), kind.String())
	probe := probeTAP
	switch kind {
	case Packet:
		probe = probePacket
	case BareTAP:
		probe = probeBare
	case Seqpacket:
		probe = probeSeqpacket
	}
	offloads, err := probe(own)
	if err != nil {
		pollable.Close()
		return nil, err
	}
	raw, err := pollable.SyscallConn()
	if err != nil {
		pollable.Close()
		return nil, err
	}
	f.Close()
	d := &Device{kind: kind, file: pollable, raw: raw, fd: own, offloads: offloads}
	d.read.fn = d.tryRead
	return d, nil
}

// Kind returns what the device is.
func (d *Device) Kind() Kind { return d.kind }

// Offloads returns what the kernel does for us.
func (d *Device) Offloads() Offloads {
	o := d.offloads
	o.USO = o.USO && !d.usoOff.Load()
	return o
}

// DisableUSO is called when the kernel refused a UDP super-segment. It reports
// whether this call made the difference.
func (d *Device) DisableUSO() bool { return d.usoOff.CompareAndSwap(false, true) }

// Notice returns one line for the user when something is missing that the
// engine is faster with, or "".
func (d *Device) Notice() string {
	if d.offloads.TSO || d.kind == Seqpacket { // the latter's other side has none to give
		return ""
	}
	if d.kind == BareTAP {
		return "the TAP was made without IFF_VNET_HDR: large transfers will be slower"
	}
	return fmt.Sprintf("this kernel offers only %s on the %s device: large transfers will be slower", d.offloads, d.kind)
}

// headerLen is the length of the header on the wire of this device.
func (d *Device) headerLen() int {
	switch d.kind {
	case Packet:
		return 10
	case BareTAP, Seqpacket:
		return 0
	}
	return HeaderLen
}

// OnIdle sets a function that the reader calls when it found no frame and is
// about to wait. It must be set before the first Readv.
func (d *Device) OnIdle(fn func()) { d.read.idle = fn }

// Readv reads one frame: its header into hdr (HeaderLen bytes), the frame
// itself into bufs in order. It returns the length of the frame. It waits until
// there is one; os.ErrClosed after Close. A frame larger than bufs is cut short,
// and of a seqpacket socket's the length is returned that it had. An error of that
// kind of device means that the other side has ended the connection. There must be
// one reader only.
func (d *Device) Readv(hdr []byte, bufs ...[]byte) (int, error) {
	r := &d.read
	r.iov = appendIovec(r.iov[:0], hdr[:d.headerLen()])
	if d.headerLen() == 0 {
		clear(hdr[:HeaderLen]) // what such a frame would have
	}
	for _, b := range bufs {
		r.iov = appendIovec(r.iov, b)
	}
	for {
		if err := d.raw.Read(r.fn); err != nil {
			if d.isClosed() { // the poller's error for it is not exported
				return 0, os.ErrClosed
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if d.gone() {
					return 0, fmt.Errorf("read from the %s device: %w", d.kind, unix.ENODEV)
				}
				d.lookAgain()
				continue
			}
			return 0, fmt.Errorf("wait for a frame on the %s device: %w", d.kind, err)
		}
		switch {
		case r.errno == 0 && r.n >= d.headerLen():
			if r.down {
				r.down = false
				_ = d.file.SetReadDeadline(time.Time{}) // it is up again
			}
			return r.n - d.headerLen(), nil
		case r.errno == 0:
			// Nothing shorter than the header leaves a kernel.
			return 0, nil
		case d.kind == Packet && r.errno == unix.ENETDOWN && !d.gone():
			// Told once when the link goes down (packet(7)); it may come up again,
			// or be deleted a moment later, which is not told.
			r.down = true
			d.lookAgain()
		default:
			return 0, fmt.Errorf("read from the %s device: %w", d.kind, r.errno)
		}
	}
}

// downPoll is how often the reader looks whether a link that is down is gone.
const downPoll = 100 * time.Millisecond

// lookAgain ends the reader's next wait after downPoll.
func (d *Device) lookAgain() { _ = d.file.SetReadDeadline(time.Now().Add(downPoll)) }

// gone reports whether the interface of a packet socket was deleted: the socket
// stays, bound to no interface (packet(7)), and would never say anything again.
func (d *Device) gone() bool {
	d.closing.RLock()
	defer d.closing.RUnlock()
	if d.closed {
		return true
	}
	name, err := unix.Getsockname(d.fd)
	if err != nil {
		return true
	}
	link, ok := name.(*unix.SockaddrLinklayer)
	return !ok || link.Ifindex <= 0
}

// tryRead is the poller's callback: false means wait for readiness.
func (d *Device) tryRead(fd uintptr) bool {
	r := &d.read
	for {
		n, errno := d.get(fd)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if r.idle != nil {
				r.idle()
			}
			return false
		}
		r.n, r.errno = n, errno
		return true
	}
}

// get makes the system call that reads a frame.
func (d *Device) get(fd uintptr) (n int, errno syscall.Errno) {
	if d.kind == Seqpacket {
		return d.receive(fd)
	}
	iov := d.read.iov
	length, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return int(length), errno
}

// Writev writes one frame. The first iovec must begin with HeaderLen bytes of
// room for the header, already filled. It waits while the device is full.
// Frames shorter than an Ethernet header are refused: old kernels do not
// survive them (CVE-2024-41090).
func (d *Device) Writev(iov []unix.Iovec) error {
	if len(iov) == 0 || iov[0].Len < HeaderLen+14 {
		return fmt.Errorf("write to the %s device: frame shorter than its Ethernet header", d.kind)
	}
	if err := d.shorten(iov); err != nil {
		return err
	}
	var waiting time.Time // since when
	for {
		if done, err := d.tryWrite(iov); done {
			return err
		}
		if d.kind == Seqpacket {
			d.beImpatient(&waiting)
		}
	}
}

// shorten makes the first HeaderLen bytes of a frame the header that the device takes.
// EINVAL, as from a kernel, for a frame whose header asks for what only one with a
// header can have.
func (d *Device) shorten(iov []unix.Iovec) error {
	if d.kind == TAP {
		return nil
	}
	h := unsafe.Slice(iov[0].Base, int(iov[0].Len))
	skip := HeaderLen - d.headerLen()
	if d.headerLen() == 0 {
		if h[0]&flagNeedsCsum != 0 || h[1] != gsoNone {
			return fmt.Errorf("write a frame with an offload to the %s device: %w", d.kind, unix.EINVAL)
		}
	} else {
		copy(h[skip:], h[:d.headerLen()]) // its last two bytes (num_buffers) are left out
	}
	iov[0].Base = &h[skip]
	iov[0].SetLen(len(h) - skip)
	return nil
}

// tryWrite makes one attempt, and waits a while if the device is full. The lock
// is let go in between: a pending Close has its turn before the next attempt,
// also when the device is never going to take a frame again.
func (d *Device) tryWrite(iov []unix.Iovec) (done bool, err error) {
	d.closing.RLock()
	defer d.closing.RUnlock()
	if d.closed {
		return true, os.ErrClosed
	}
	errno := d.put(iov)
	switch errno {
	case 0:
		return true, nil
	case unix.EINTR:
		return false, nil
	case unix.EAGAIN, unix.ENOBUFS:
		if d.stalled.Load() {
			return true, errStalled
		}
		err := d.waitRoom(errno)
		return err != nil, err
	}
	return true, fmt.Errorf("write to the %s device: %w", d.kind, errno)
}

// put makes the system call that writes a frame.
func (d *Device) put(iov []unix.Iovec) (errno syscall.Errno) {
	if d.kind == Seqpacket {
		return d.send(iov)
	}
	_, _, errno = unix.RawSyscall(unix.SYS_WRITEV, uintptr(d.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return errno
}

// waitRoom waits a while for the device to take frames again. A full send
// buffer (EAGAIN) shows in poll(2), a busy transmit queue below it (ENOBUFS)
// does not. It polls the descriptor outside Go's poller, whose writability is
// edge-triggered and would have to be shared by all writers; the waits are
// short because Close waits for them.
func (d *Device) waitRoom(errno syscall.Errno) error {
	p, ms := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLOUT}}, 100
	if errno == unix.ENOBUFS {
		p, ms = nil, 1
	}
	if _, err := unix.Poll(p, ms); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for room on the %s device: %w", d.kind, err)
	}
	return nil
}

// Close ends the reader and closes the device. Writers that are under way are
// waited for.
func (d *Device) Close() error {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.file.Close()
}

func (d *Device) isClosed() bool {
	d.closing.RLock()
	defer d.closing.RUnlock()
	return d.closed
}

func appendIovec(iov []unix.Iovec, b []byte) []unix.Iovec {
	if len(b) == 0 {
		return iov
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(iov, v)
}
