package bind

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Path is the file of a unix socket that we have made.
type Path struct {
	name string
	id   identity
}

// identity tells one file from another that came later under the same name. The
// numbers of a file that is gone may come again, but not while its socket is open;
// then also a change of its mode must not make it another.
type identity struct {
	dev, ino uint64
	// changed is for files whose socket we do not have, otherwise 0.
	changed unix.Timespec
}

// Unix listens on a unix stream socket that only its owner may connect to (mode
// 0600). A socket that nobody listens on any more is replaced, one that is alive is
// EADDRINUSE, and any other file stays what it is (EEXIST).
func Unix(path string) (*os.File, *Path, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socket", err)
	}
	p, err := bindPath(fd, path)
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	if err := p.listen(fd); err != nil {
		unix.Close(fd)
		_ = p.Remove() // the first failure is the one to tell
		return nil, nil, err
	}
	f, err := Hold(fd, "unix "+path)
	if err != nil {
		_ = p.Remove()
		return nil, nil, err
	}
	return f, p, nil
}

// bindPath binds fd to a path where nothing is, or only what was left behind.
func bindPath(fd int, path string) (*Path, error) {
	// The kernel makes the file with the socket's mode, so that nobody else can
	// connect at any moment (unix_bind_bsd in net/unix/af_unix.c).
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, os.NewSyscallError("fchmod", err)
	}
	err := unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStale(path); err != nil {
			return nil, err
		}
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	id, err := identify(path)
	if errors.Is(err, unix.ENOENT) {
		err = errReplaced
	}
	if err != nil {
		return nil, err
	}
	id.changed = unix.Timespec{}
	return &Path{path, id}, nil
}

// errReplaced is for a process that removed our socket, before we listened on it, as
// a stale one.
var errReplaced = os.NewSyscallError("bind", unix.EADDRINUSE)

// listen lets clients come, if the path is still the socket's.
func (p *Path) listen(fd int) error {
	if err := unix.Listen(fd, Backlog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	if id, err := identify(p.name); err != nil || !id.is(p.id) {
		return errReplaced
	}
	return nil
}

// removeStale removes a socket on which nobody listens.
func removeStale(path string) error {
	id, err := identify(path)
	if errors.Is(err, unix.ENOENT) {
		return nil // its owner has just removed it
	}
	if err != nil {
		return err
	}
	alive, err := listens(path)
	if err == nil && alive {
		err = os.NewSyscallError("bind", unix.EADDRINUSE)
	}
	if err != nil {
		return err
	}
	// Whoever else found the same stale socket may have replaced it meanwhile.
	return (&Path{path, id}).Remove()
}

// listens reports whether somebody listens on a unix socket.
func listens(path string) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return false, nil
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPROTOTYPE):
		// Also one with a full backlog, and one of another type.
		return true, nil
	default:
		return false, fmt.Errorf("find out whether somebody listens: %w", os.NewSyscallError("connect", err))
	}
}

// is reports whether a file is the one that was known before.
func (id identity) is(known identity) bool {
	return id.dev == known.dev && id.ino == known.ino && (known.changed == unix.Timespec{} || id.changed == known.changed)
}

// Remove removes the file if it is still the one that we made. It has to come before
// the socket is closed.
func (p *Path) Remove() error {
	id, err := identify(p.name)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EEXIST), err == nil && !id.is(p.id):
		return nil // not ours any more
	case err == nil:
		err = os.NewSyscallError("unlink", unix.Unlink(p.name))
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove unix socket %s: %w", p.name, err)
	}
	return nil
}

// identify returns which socket a path is; EEXIST if it is no socket.
func identify(path string) (id identity, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return id, os.NewSyscallError("lstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return id, os.NewSyscallError("bind", unix.EEXIST)
	}
	return identity{st.Dev, st.Ino, st.Ctim}, nil
}
