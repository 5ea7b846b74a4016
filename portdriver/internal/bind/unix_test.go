package bind

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// leave makes a socket of a type and leaves its file behind.
func leave(t *testing.T, path string, kind int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
}

func listensAt(t *testing.T, path string) bool {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err == nil
}

func TestUnixMode(t *testing.T) {
	old := unix.Umask(0) // the mode does not depend on it
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "s")
	f, p, err := Unix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := os.Lstat(path); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // a user may let others in
		t.Fatal(err)
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
	if err := p.Remove(); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestUnixStale: what an earlier instance left behind gives way.
func TestUnixStale(t *testing.T) {
	for name, kind := range map[string]int{"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET} {
		path := filepath.Join(t.TempDir(), "s")
		leave(t, path, kind)
		f, _, err := Unix(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !listensAt(t, path) {
			t.Errorf("%s: does not listen", name)
		}
		f.Close()
	}
}

// TestUnixAlive: one that is in use stays, whatever its type and however busy.
func TestUnixAlive(t *testing.T) {
	dir := t.TempDir()
	stream, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "datagram")})
	if err != nil {
		t.Fatal(err)
	}
	defer datagram.Close()
	full := filepath.Join(dir, "full")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: full}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("unix", full)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, name := range []string{"stream", "datagram", "full"} {
		path := filepath.Join(dir, name)
		before, _ := identify(path)
		if f, _, err := Unix(path); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
		if after, err := identify(path); err != nil || after != before {
			t.Errorf("%s was replaced: %v", name, err)
		}
	}
}

// TestUnixOtherFiles: what is no socket is never removed.
func TestUnixOtherFiles(t *testing.T) {
	dir := t.TempDir()
	file, link, subdir, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "dir"), filepath.Join(dir, "fifo")
	stale := filepath.Join(dir, "stale")
	leave(t, stale, unix.SOCK_STREAM)
	err := errors.Join(os.WriteFile(file, []byte("x"), 0o600), os.Symlink(stale, link), os.Mkdir(subdir, 0o700), unix.Mkfifo(fifo, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, subdir, fifo} {
		f, _, err := Unix(path)
		if !errors.Is(err, unix.EEXIST) {
			t.Errorf("%s: %v, %v", path, f, err)
		}
		if text := ExplainPath(path, err).Error(); !strings.Contains(text, path) || !strings.Contains(text, "no socket") {
			t.Error(text)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveOnlyOurs: a file that came under the same name later stays.
func TestRemoveOnlyOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f, p, err := Unix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, replace := range []func() error{
		func() error { leave(t, path, unix.SOCK_STREAM); return nil },
		func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		if err := errors.Join(os.Remove(path), replace()); err != nil {
			t.Fatal(err)
		}
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestUnixSimultaneously: of many that find the same stale socket one wins, and its
// socket is the one at the path.
func TestUnixSimultaneously(t *testing.T) {
	dir := t.TempDir()
	for range 50 {
		path := filepath.Join(dir, "s")
		leave(t, path, unix.SOCK_STREAM)
		var wins atomic.Int32
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				f, _, err := Unix(path)
				if err == nil {
					wins.Add(1)
					t.Cleanup(func() { f.Close() })
				} else if !errors.Is(err, unix.EADDRINUSE) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := wins.Load(); n < 1 || !listensAt(t, path) {
			t.Errorf("%d won; listens: %v", n, listensAt(t, path))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnixForbidden: a live socket that we may not connect to stays.
func TestUnixForbidden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if f, _, err := Unix(path); err == nil {
		t.Errorf("bound over a live socket: %v", f.Name())
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}
