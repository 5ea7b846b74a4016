package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
)

// A virtual machine's interface can be a unix socket of the type SOCK_SEQPACKET that
// carries a frame a message, as User Mode Linux has it (its vector transport "bess").
// We listen, and whoever connects is the container: there is no namespace to enter, and
// nobody tells its hardware address.

// GuestSocket waits for one virtual machine. It must be closed.
type GuestSocket struct {
	path     string
	listener *net.UnixListener
	own      os.FileInfo // the socket's file
	admits   func(uid int) bool

	come    chan arrival  // has room for the one
	closing chan struct{} // closed by Close
	waiting sync.WaitGroup
	once    sync.Once
}

// arrival is the virtual machine's connection, or why none can come.
type arrival struct {
	file *os.File
	err  error
}

// acceptPause is before the next attempt to accept a connection when descriptors or
// memory have run out.
const acceptPause = 100 * time.Millisecond

// ListenGuest binds path, with the permissions that the umask leaves, and listens.
// Connections wait until there is a session. A socket that nobody listens on any more
// gives way: we leave one behind when we are killed. Anything else is an error.
func ListenGuest(path string) (*GuestSocket, error) {
	g, err := listenGuest(path)
	if err != nil {
		return nil, fmt.Errorf("listen for a virtual machine on %.128q: %w", path, err)
	}
	return g, nil
}

func listenGuest(path string) (*GuestSocket, error) {
	if err := makeRoom(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", socketAddr(path))
	if err != nil {
		return nil, errnoOf(err)
	}
	l.SetUnlinkOnClose(false) // by then the name may be another's
	own, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, errnoOf(err)
	}
	return &GuestSocket{
		path: path, listener: l, own: own, admits: admitted(os.Getuid()),
		come: make(chan arrival, 1), closing: make(chan struct{}),
	}, nil
}

// socketAddr is a path's; package net would take "@x" for an abstract socket.
func socketAddr(path string) *net.UnixAddr {
	if strings.HasPrefix(path, "@") {
		path = "./" + path
	}
	return &net.UnixAddr{Name: path, Net: "unixpacket"}
}

// makeRoom removes a socket that nobody listens on. To find out, it connects with a
// socket of another type, which the kernel refuses differently where there is somebody
// (unix(7), EPROTOTYPE), and of which that one notices nothing: its only connection
// is not for us to take.
func makeRoom(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return errnoOf(err)
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is no socket; remove it or name another path")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: socketAddr(path).Name})
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	case err == nil || errors.Is(err, unix.EPROTOTYPE):
		return errors.New("somebody else is listening there; name another path")
	}
	return fmt.Errorf("is the socket that is there in use? %w; remove it or name another path", err)
}

// start begins to wait for the connection, which comes by the channel.
func (g *GuestSocket) start(log *slog.Logger) <-chan arrival {
	g.waiting.Go(func() {
		f, err := g.accept(log)
		// There is one guest: who comes later is refused by the kernel.
		_ = g.listener.Close()
		g.come <- arrival{f, err}
	})
	return g.come
}

// accept returns the first connection of our user or root.
func (g *GuestSocket) accept(log *slog.Logger) (*os.File, error) {
	for {
		conn, err := g.listener.AcceptUnix()
		if noRoom(err) {
			log.Warn("no virtual machine can connect for now", "cause", err)
			select {
			case <-g.closing:
			case <-time.After(acceptPause):
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("accept the virtual machine's connection on %.128q: %w", g.path, errnoOf(err))
		}
		peer, err := fdpass.PeerCred(conn)
		if err == nil && g.admits(int(peer.Uid)) {
			f, err := conn.File() // another descriptor of it
			_ = conn.Close()
			return f, err
		}
		_ = conn.Close()
		log.Warn("a connection was refused that is not our user's", "peer", peer, "cause", err, "path", g.path)
	}
}

// admitted says who may connect to a user's socket: that user and root, as to the
// control sockets, whatever the file's mode.
func admitted(ours int) func(uid int) bool {
	return func(uid int) bool { return uid == 0 || uid == ours }
}

// noRoom reports whether accepting failed for want of what may come back, or with a
// client that has left (accept(2)).
func noRoom(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Close ends the waiting and removes the socket's file, if it still is ours. A
// connection that a session has taken stays. It may be called again.
func (g *GuestSocket) Close() {
	g.once.Do(func() {
		close(g.closing)
		_ = g.listener.Close()
		g.waiting.Wait()
		// Another's file may have got the number of ours, but nobody listens on ours.
		if now, err := os.Lstat(g.path); err == nil && os.SameFile(now, g.own) {
			_ = makeRoom(g.path)
		}
		select {
		case a := <-g.come:
			closeFiles(a.file)
		default:
		}
	})
}

// errGuestGone ends an instance whose virtual machine has ended the connection.
var errGuestGone = fmt.Errorf("%w: the virtual machine has closed its connection", errNobodyLeft)

// welcome connects the network to a virtual machine.
func (s *session) welcome(a arrival) error {
	s.guest = nil
	if a.err != nil {
		return a.err
	}
	return s.connectBy(nil, func() (endpoint, string, error) {
		own, err := holdBlocking(a.file)
		_ = a.file.Close()
		if err != nil {
			return endpoint{}, "", fmt.Errorf("take the virtual machine's connection over: %w", err)
		}
		return endpoint{kind: handoff.Seqpacket, file: own, mac: s.cfg.MAC}, "", nil
	})
}
