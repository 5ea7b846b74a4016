// Package fdpass carries messages with open descriptors between our own
// processes: SCM_RIGHTS over a SOCK_SEQPACKET unix socket (unix(7)).
//
// One Send is one Recv: the socket keeps message boundaries, so there is no
// framing. A message has at least one byte (a message of none could not be told
// from the end) and at most MaxMessage, with at most MaxFiles descriptors. What
// arrives cut short, bytes or descriptors, is an error, and every descriptor that
// came with it is closed: half a message is never acted on. Received descriptors
// are close-on-exec from the first instant.
//
// RecvRaw takes more descriptors, of any sender, as numbers and not as files.
//
// A Conn sits on Go's poller: Close and deadlines interrupt a waiting Recv.
// Sending and receiving may go on at the same time from different goroutines.
package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is how many bytes one message may have. It stays well below the
	// kernel's default socket buffer (net.core.wmem_default, 212,992 bytes), so a
	// message is never refused for its size (EMSGSIZE).
	MaxMessage = 64 << 10

	// MaxFiles is how many descriptors one message may carry; the kernel's own
	// limit is 253 (SCM_MAX_FD, unix(7)).
	MaxFiles = 64
)

// ErrTruncated is wrapped when a message was longer than the buffer or carried
// more than MaxFiles descriptors; its descriptors have been closed.
var ErrTruncated = errors.New("message truncated")

// Pair makes two connected ends, both close-on-exec and in blocking mode: one for
// NewConn, one to hand to a child process.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a control socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

// Conn is one end. The zero Conn is not usable; see NewConn.
type Conn struct {
	sock *net.UnixConn
}

// NewConn takes f, a unix SOCK_SEQPACKET socket, over: f is closed whether or not
// it succeeds, the Conn has its own descriptor.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	if err := checkKind(f); err != nil {
		return nil, fmt.Errorf("use %s as a control socket: %w", f.Name(), err)
	}
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use %s as a control socket: %w", f.Name(), err)
	}
	sock, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("use %s as a control socket: it is a %s socket", f.Name(), nc.LocalAddr().Network())
	}
	return &Conn{sock: sock}, nil
}

// checkKind refuses what is not SOCK_SEQPACKET: a stream has no messages, a
// datagram socket has no end.
func checkKind(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var kind int
	var serr error
	if err := rc.Control(func(fd uintptr) {
		kind, serr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	}); err != nil {
		return err
	}
	if serr != nil {
		return serr
	}
	if kind != unix.SOCK_SEQPACKET {
		return unix.EPROTOTYPE
	}
	return nil
}

// Close ends the connection and any Send or Recv under way. The peer's next Recv
// reports io.EOF after it has read what was sent before.
func (c *Conn) Close() error { return c.sock.Close() }

// SetDeadline bounds every Send and Recv, those under way too; the zero time
// lifts it. An exceeded deadline is os.ErrDeadlineExceeded.
func (c *Conn) SetDeadline(t time.Time) error { return c.sock.SetDeadline(t) }
