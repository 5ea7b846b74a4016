package slirpapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/netplan"
)

// maxPath is the longest path: sun_path less its NUL (unix(7)).
const maxPath = 107

// Ports publishes ports; the control socket's Ports is one. Its methods are called
// from several goroutines.
type Ports interface {
	// Add puts all specs in force, or none, and returns their rules in the same
	// order.
	Add(context.Context, []portdriver.Spec) ([]portdriver.Rule, error)
	// Remove ends a rule. It wraps portdriver.ErrNotFound if there is none.
	Remove(ctx context.Context, id int) error
	// Rules returns the rules in force.
	Rules() []portdriver.Rule
}

// Server serves one socket; Close ends and awaits its goroutines.
type Server struct {
	path     string
	listener *net.UnixListener
	own      os.FileInfo // the socket's file
	gate     *gate
	table    *table
	log      *slog.Logger

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	serving sync.WaitGroup
}

// Listen binds path and serves it. A socket that was left there gives way, and so
// does the empty file of mktemp(1); anything else is an error. Without ports, which
// may be nil, nothing can be published. The addresses that clients leave out are the
// plan's, whose IPv4 family must be on for that.
func Listen(path string, ports Ports, plan netplan.Plan, log *slog.Logger) (*Server, error) {
	return listen(path, newTable(ports, plan.V4), log, newGate(os.Getuid()))
}

func listen(path string, t *table, log *slog.Logger, g *gate) (*Server, error) {
	l, own, err := bind(path)
	if err != nil {
		return nil, fmt.Errorf("bind slirp4netns API socket %.128q: %w", path, err)
	}
	s := &Server{path: path, listener: l, own: own, gate: g, table: t, log: log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.serving.Go(s.accept)
	return s, nil
}

// bind makes the socket and returns its file's identity.
func bind(path string) (*net.UnixListener, os.FileInfo, error) {
	switch {
	case path == "":
		return nil, nil, errors.New("the path is empty")
	case len(path) > maxPath:
		return nil, nil, fmt.Errorf("the path is too long (%d bytes, want at most %d); name a shorter one", len(path), maxPath)
	}
	if err := makeRoom(path); err != nil {
		return nil, nil, err
	}
	name := path
	if strings.HasPrefix(name, "@") {
		name = "./" + name // else package net takes it for an abstract socket
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, nil, cause(err)
	}
	l.SetUnlinkOnClose(false) // by then the name may be another's
	// Who connects before that is looked at by the gate all the same.
	err = os.Chmod(path, 0o600)
	var own os.FileInfo
	if err == nil {
		own, err = os.Lstat(path)
	}
	if err != nil {
		_ = l.Close()
		return nil, nil, err
	}
	return l, own, nil
}

// cause drops package net's repetition of the address.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// makeRoom removes what may be removed from the socket's place.
func makeRoom(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return cause(err)
	case info.Mode().Type() == fs.ModeSocket, info.Mode().IsRegular() && info.Size() == 0:
		return os.Remove(path)
	}
	return errors.New("there is a file that is no socket; remove it or name another path")
}

// Close removes the socket, ends every connection and waits for changes under way.
func (s *Server) Close() {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.own) {
		_ = os.Remove(s.path)
	}
	s.cancel()
	_ = s.listener.Close()
	s.gate.close()
	s.serving.Wait()
}
