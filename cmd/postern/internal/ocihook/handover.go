package ocihook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/fdpass"
)

// Some runtimes' init may not be looked at by its own user while the hooks run
// (crun's has changed its ids: PR_SET_DUMPABLE in prctl(2)). Then createRuntime's
// server does not attach but listens on a socket beside the bundle's files, and
// createContainer's hook, which runs in the container's namespaces, brings them:
//
//	hook ── {id, bundle}, user namespace, network namespace ──▶ server
//	     ◀───────────────────── Ready, or Failed and the reason ──
//
// The socket is in a directory of the user's alone, lives as long as the handover,
// and its peer must be the user.

// greeting says whose namespaces come with it.
type greeting struct{ ID, Bundle string }

// maxGreeting bounds it: an id and a path, each byte six in JSON at worst.
const maxGreeting = 6*(maxID+maxPath) + 64

// Namespaces are the container's. Report is where the server says Ready or Failed
// to the hook that brought them; nil if none did.
type Namespaces struct{ User, Net, Report *os.File }

// Close lets go of the namespaces; Report is left alone.
func (n Namespaces) Close() {
	_ = n.User.Close()
	_ = n.Net.Close()
}

// NamespacesOf opens those of the process of a pidfd, whose number is pid: if it
// still lives afterwards, the number was its own.
func NamespacesOf(life *os.File, pid int) (n Namespaces, err error) {
	var files []*os.File
	for _, kind := range []string{"user", "net"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			closeAll(files)
			return n, fmt.Errorf("open the container's namespaces: %w", err)
		}
		files = append(files, f)
	}
	if err = alive(int(life.Fd()), pid); err == nil {
		err = otherNetwork(files[1])
	}
	if err != nil {
		closeAll(files)
		return n, err
	}
	return Namespaces{User: files[0], Net: files[1]}, nil
}

// Handover waits for a container's namespaces.
type Handover struct {
	container Container
	dir       *os.File
	listener  *net.UnixListener
}

// socketAddr is the socket's address by the descriptor of its directory, so that
// the directory's path may have any length (unix(7): 108 bytes).
func socketAddr(dir *os.File, name string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName(name))}
}

func socketName(name string) string { return name + ".sock" }

func openFiles(files string) (*os.File, error) {
	if files == "" {
		return nil, errors.New("the hook has no --files for a socket (postern oci prepare writes it)")
	}
	fd, err := unix.Open(files, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w (postern oci prepare makes it)", files, err)
	}
	return os.NewFile(uintptr(fd), files), nil
}

// Listen begins to wait. What an earlier server left under the name is removed.
func (c Container) Listen(files, name string) (*Handover, error) {
	dir, err := openFiles(files)
	if err != nil {
		return nil, err
	}
	if err := unix.Unlinkat(int(dir.Fd()), socketName(name), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		_ = dir.Close()
		return nil, fmt.Errorf("remove stale %s/%s: %w", files, socketName(name), err)
	}
	l, err := net.ListenUnix("unixpacket", socketAddr(dir, name))
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("wait for the container's namespaces in %s: %w", files, err)
	}
	return &Handover{container: c, dir: dir, listener: l}, nil
}

// Close removes the socket.
func (h *Handover) Close() {
	_ = h.listener.Close() // which also removes the name
	_ = h.dir.Close()
}

// ErrEnded is wrapped when the container ended before its network was made.
var ErrEnded = errors.New("the container has ended")

// Wait waits for the namespaces, but no longer than the process of a pidfd lives,
// nor than a hook may take to come.
func (h *Handover) Wait(life *os.File) (Namespaces, error) {
	deadline := time.Now().Add(readyWithin)
	_ = h.listener.SetDeadline(deadline)
	for {
		if err := h.pending(life, deadline); err != nil {
			return Namespaces{}, fmt.Errorf("wait for the createContainer hook of container %s: %w", h.container.ID, err)
		}
		conn, err := h.listener.AcceptUnix()
		if err != nil {
			return Namespaces{}, fmt.Errorf("wait for the createContainer hook of container %s: %w", h.container.ID, err)
		}
		_ = conn.SetDeadline(deadline)
		n, err := h.take(conn)
		if err == nil {
			return n, nil
		}
		_, _ = conn.Write([]byte(Failed + err.Error())) // it reads, or it is gone
		_ = conn.Close()
	}
}

// pending waits until somebody has connected.
func (h *Handover) pending(life *os.File, deadline time.Time) error {
	listener, err := h.listener.File()
	if err != nil {
		return err
	}
	defer listener.Close()
	fds := []unix.PollFd{{Fd: int32(life.Fd()), Events: unix.POLLIN}, {Fd: int32(listener.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return ErrEnded
		case n == 0:
			return fmt.Errorf("%w (config.json must name it; postern oci prepare does)", os.ErrDeadlineExceeded)
		default:
			return nil
		}
	}
}

// take reads one peer's greeting. The connection becomes Report.
func (h *Handover) take(conn *net.UnixConn) (n Namespaces, err error) {
	if err := isUser(conn); err != nil {
		return n, err
	}
	text, control := make([]byte, maxGreeting), make([]byte, unix.CmsgSpace(2*4))
	size, controlSize, flags, _, err := conn.ReadMsgUnix(text, control)
	if err != nil {
		return n, fmt.Errorf("read namespaces: %w", err)
	}
	files := rights(control[:controlSize])
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	var g greeting
	if err := json.Unmarshal(text[:size], &g); err != nil || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) != 2 {
		return n, errors.New("read namespaces: malformed message")
	}
	if g.ID != h.container.ID || g.Bundle != h.container.Bundle {
		return n, fmt.Errorf("this is the server of container %s in %s", h.container.ID, h.container.Bundle)
	}
	if err := otherNetwork(files[1]); err != nil {
		return n, err
	}
	report, err := conn.File()
	if err != nil {
		return n, fmt.Errorf("keep the hook's connection: %w", err)
	}
	_ = conn.Close()
	return Namespaces{User: files[0], Net: files[1], Report: report}, nil
}

// isUser refuses a peer of another user. Root in the container is the user here.
func isUser(conn *net.UnixConn) error {
	cred, err := fdpass.PeerCred(conn)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("the peer is uid %d, not us", cred.Uid)
	}
	return nil
}

func rights(control []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "namespace"))
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// bring is the other side: it brings our own namespaces to the container's server.
// False says that nobody waits for them.
func (c Container) bring(files string) (waited bool, err error) {
	if files == "" {
		return false, nil
	}
	dir, err := openFiles(files)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	for _, name := range c.names() {
		conn, err := net.DialUnix("unixpacket", nil, socketAddr(dir, name))
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
			continue
		case err != nil:
			return false, fmt.Errorf("find the network's server: %w", err)
		}
		return true, c.give(conn)
	}
	return false, nil
}

// give sends the namespaces and waits for the network.
func (c Container) give(conn *net.UnixConn) error {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(readyWithin))
	var namespaces []*os.File
	defer func() { closeAll(namespaces) }()
	for _, kind := range []string{"user", "net"} {
		f, err := os.Open("/proc/self/ns/" + kind)
		if err != nil {
			return fmt.Errorf("open the container's namespaces: %w", err)
		}
		namespaces = append(namespaces, f)
	}
	text, err := json.Marshal(greeting{c.ID, c.Bundle})
	if err != nil {
		return fmt.Errorf("send the container's namespaces: %w", err)
	}
	if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(int(namespaces[0].Fd()), int(namespaces[1].Fd())), nil); err != nil {
		return fmt.Errorf("send the container's namespaces: %w", err)
	}
	answer := make([]byte, maxReason)
	n, err := conn.Read(answer)
	if err != nil {
		return fmt.Errorf("wait for the network: %w", err)
	}
	return verdict(string(answer[:n]))
}

// verdict is what the server's report comes to.
func verdict(said string) error {
	if said == Ready {
		return nil
	}
	if reason, ok := strings.CutPrefix(said, Failed); ok {
		return errors.New(strings.TrimSpace(reason))
	}
	return errEarly
}

// errEarly says that the server said nothing.
var errEarly = errors.New("the network's server ended early")

// otherNetwork refuses a network namespace that is our own.
func otherNetwork(f *os.File) error {
	var ours, its unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/self/ns/net", &ours), unix.Fstat(int(f.Fd()), &its)); err != nil {
		return fmt.Errorf("examine network namespaces: %w", err)
	}
	if ours.Dev == its.Dev && ours.Ino == its.Ino {
		return errHostNetwork
	}
	return nil
}

var errHostNetwork = errors.New("the container is in the host's network: config.json names no network namespace (postern oci prepare adds it)")

// Path is how a namespace of the handover is named to those who open paths.
func Path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// waits is the argument that makes a server wait for a handover.
const waits = "--wait"

// withWait puts it where flags are.
func withWait(args []string) []string { return slices.Insert(slices.Clone(args), 2, waits) }
