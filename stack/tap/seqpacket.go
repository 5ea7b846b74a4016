package tap

import (
	"errors"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a frame waits for the other side of a seqpacket socket to make
// room. A virtual machine that is scheduled at all reads within milliseconds; one that
// writes until it is heard, and reads only then, would wait for our reader, which waits
// for it here.
const patience = time.Second

// errStalled is what a frame is lost with whose receiver has taken none for a while.
var errStalled = fmt.Errorf("write to the seqpacket device: its other side takes no frames: %w", unix.ENOBUFS)

// errNoSeqpacket says what has been handed to us.
var errNoSeqpacket = errors.New("it is no connected unix socket of the type SOCK_SEQPACKET")

// probeSeqpacket checks what the descriptor is. Nobody has offloads to give there: a
// message is a frame and nothing else.
func probeSeqpacket(fd int) (Offloads, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET {
		return Offloads{}, errors.Join(errNoSeqpacket, err)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return Offloads{}, errors.Join(errNoSeqpacket, err)
	}
	// The sender's buffer is the queue of the link (unix(7)); the kernel halves the size
	// to wmem_max. With the default one works too.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, packetBuffer)
	return Offloads{}, nil
}

// receive reads one message. Descriptors that come with it are closed by the kernel,
// because no room is offered for them.
func (d *Device) receive(fd uintptr) (n int, errno syscall.Errno) {
	r := &d.read
	r.msg = unix.Msghdr{Iov: &r.iov[0]}
	r.msg.SetIovlen(len(r.iov))
	// MSG_TRUNC: the length of the message, not of what fitted (recv(2)).
	length, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.msg)), unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	if errno == 0 && length == 0 && hungUp(int(fd)) {
		errno = unix.ECONNRESET
	}
	return int(length), errno
}

// hungUp tells the end of the connection from an empty message, which anybody may send.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// send writes one message. The other side may be gone already, which is for the reader
// to find out, and no reason for a signal.
func (d *Device) send(iov []unix.Iovec) syscall.Errno {
	msg := unix.Msghdr{Iov: &iov[0]}
	msg.SetIovlen(len(iov))
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(d.fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errno == 0 && d.stalled.Load() {
		d.stalled.Store(false)
	}
	return errno
}

// beImpatient notes that a frame has waited in vain, and for how long. After patience
// every frame is lost that finds no room, until one does.
func (d *Device) beImpatient(since *time.Time) {
	if since.IsZero() {
		*since = time.Now()
	} else if time.Since(*since) > patience {
		d.stalled.Store(true)
	}
}
