package slirpapi

import (
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-net/postern/cmd/postern/internal/apisock/apitest"
	"github.com/postern-net/postern/stack/netplan"
)

func tryListen(path string, ports Ports) (*Server, error) {
	return Listen(path, ports, netplan.Default(), slog.New(slog.DiscardHandler))
}

// TestPath is what may be at the socket's place, and what is there afterwards.
func TestPath(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", maxPath))[:maxPath]
	for _, tc := range []struct {
		name, path string
		before     func(path string) error
		wrong      string // in the error
	}{
		{"nothing", filepath.Join(dir, "a"), nil, ""},
		{"stale socket", filepath.Join(dir, "b"), stale, ""},
		{"empty file", filepath.Join(dir, "c"), func(p string) error { return os.WriteFile(p, nil, 0o600) }, ""},
		{"107 bytes", long, nil, ""},
		{"108 bytes", long + "x", nil, "too long (108 bytes, want at most 107)"},
		{"no path", "", nil, "empty"},
		{"a file", filepath.Join(dir, "d"), func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) }, "no socket"},
		{"a directory", filepath.Join(dir, "e"), func(p string) error { return os.Mkdir(p, 0o700) }, "no socket"},
		{"a link", filepath.Join(dir, "f"), func(p string) error { return os.Symlink("x", p) }, "no socket"},
		{"no directory", filepath.Join(dir, "none", "g"), nil, "no such file"},
	} {
		if tc.before != nil {
			if err := tc.before(tc.path); err != nil {
				t.Fatal(err)
			}
		}
		s, err := tryListen(tc.path, nil)
		if tc.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wrong) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want an error with %q", tc.name, err, tc.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if info, err := os.Lstat(tc.path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("%s: %v, %v; want a socket of mode 0600", tc.name, info.Mode(), err)
		}
		want(t, tc.path, listHostFwd, noEntries)
		s.Close()
		if _, err := os.Lstat(tc.path); !os.IsNotExist(err) {
			t.Errorf("%s: the socket is still there: %v", tc.name, err)
		}
	}
}

// stale leaves a socket that nobody listens on.
func stale(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// TestAtSign: a relative path that begins with @ is a path.
func TestAtSign(t *testing.T) {
	t.Chdir(t.TempDir())
	s, err := tryListen("@s", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want(t, "./@s", listHostFwd, noEntries)
}

// TestCloseLeavesOthers: a socket that another program has put there stays.
func TestCloseLeavesOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := tryListen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := tryListen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	want(t, path, listHostFwd, noEntries)
}

// TestClose ends clients that wait, changes under way and clients in the queue.
func TestClose(t *testing.T) {
	ports := &apitest.Ports{Delay: make(chan struct{})}
	path := filepath.Join(t.TempDir(), "s")
	g := newGate(os.Getuid())
	g.patience = time.Hour
	s, err := listen(path, newTable(ports, netplan.Default().V4), slog.New(slog.DiscardHandler), g)
	if err != nil {
		t.Fatal(err)
	}
	var clients []*net.UnixConn
	for range 2 * maxConns {
		clients = append(clients, dial(t, path))
	}
	if _, err := clients[0].Write([]byte(add(`"host_port":8080,"guest_port":80`))); err != nil {
		t.Fatal(err)
	}
	drained(t, clients[0])
	s.Close()
	for i, c := range clients {
		if got := answer(t, c); i > 0 && got != "" {
			t.Errorf("client %d: %s", i, got)
		}
	}
	if rules := ports.Rules(); len(rules) != 0 {
		t.Errorf("rules %v", rules)
	}
}
