package rootlesskit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/fdpass"
)

// childDriver implements port.ChildDriver.
type childDriver struct{ log *slog.Logger }

// NewChildDriver returns the driver for child.Opt.
func NewChildDriver(cfg Config) port.ChildDriver { return &childDriver{cfg.logger()} }

// RunChildDriver tells the parent which namespaces we are in, and waits for quit.
func (d *childDriver) RunChildDriver(opaque map[string]string, quit <-chan struct{}, detachedNetNSPath string) error {
	ctx, cancel := context.WithTimeout(context.Background(), meeting)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- introduce(ctx, opaque[opaqueSocket], detachedNetNSPath) }()
	select {
	case err := <-result:
		if err != nil {
			d.log.Error("ports cannot be published", "cause", err)
		}
		<-quit
		return err
	case <-quit:
		cancel()
		err := <-result
		if errors.Is(err, context.Canceled) {
			return nil // it was broken off, which is no failure
		}
		return err
	}
}

// introduce sends the namespaces to the parent.
func introduce(ctx context.Context, path, detached string) error {
	if path == "" {
		return errors.New("publish ports: the parent driver is another one: it names no socket")
	}
	netns := detached
	if netns == "" {
		netns = "/proc/self/ns/net"
	}
	var files []*os.File
	for _, name := range []string{"/proc/self/ns/user", netns} {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("publish ports: %w", err)
		}
		defer f.Close()
		files = append(files, f)
	}
	conn, err := dialParent(ctx, path)
	if err != nil {
		return fmt.Errorf("publish ports: reach the parent driver: %w", err)
	}
	defer conn.Close()
	if err := conn.Send([]byte(hello), files...); err != nil {
		return fmt.Errorf("publish ports: send our namespaces to the parent driver: %w", err)
	}
	return nil
}

// dialParent connects to the parent driver, which may not be there yet.
func dialParent(ctx context.Context, path string) (*fdpass.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		sock, err := net.DialUnix(socketNetwork, nil, &net.UnixAddr{Name: path, Net: socketNetwork})
		if err == nil {
			return messages(sock)
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// socketNetwork is SOCK_SEQPACKET, as fdpass wants it.
const socketNetwork = "unixpacket"

// messages takes a connected socket over.
func messages(sock *net.UnixConn) (*fdpass.Conn, error) {
	defer sock.Close()
	f, err := sock.File()
	if err != nil {
		return nil, err
	}
	return fdpass.NewConn(f)
}
