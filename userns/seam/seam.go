// Package seam joins proto/handoff to userns/fdpass: typed messages with
// descriptors over the socket between two processes of an instance.
package seam

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
)

// ControlFD is the descriptor on which the engine and the agent find their end
// of the socket: the first after standard error.
const ControlFD = 3

// Conn is one end. Send is safe for concurrent use; Recv has one caller.
type Conn struct {
	conn *fdpass.Conn
	buf  []byte

	sending sync.Mutex // keeps one Send whole
}

// New takes f, one end of fdpass.Pair, over.
func New(f *os.File) (*Conn, error) {
	conn, err := fdpass.NewConn(f)
	if err != nil {
		return nil, err
	}
	return &Conn{conn: conn, buf: make([]byte, handoff.MaxMessage)}, nil
}

// Control returns the end that our parent left at ControlFD. It fails when the
// process was started by hand instead of by a supervisor.
func Control() (*Conn, error) {
	unix.CloseOnExec(ControlFD)
	f := os.NewFile(ControlFD, "control")
	if f == nil {
		return nil, errors.New("no control descriptor: this program is started by postern itself")
	}
	c, err := New(f)
	if err != nil {
		return nil, fmt.Errorf("no control descriptor: this program is started by postern itself: %w", err)
	}
	return c, nil
}

// Send sends one message; the files stay the caller's.
func (c *Conn) Send(m handoff.Message, files ...*os.File) error {
	b, err := handoff.Encode(m)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.conn.Send(b, files...)
}

// Recv waits for one message. The files are the caller's to close. The end of
// the peer is io.EOF, however the kernel calls it.
func (c *Conn) Recv() (handoff.Message, []*os.File, error) {
	n, files, err := c.conn.Recv(c.buf)
	if errors.Is(err, unix.ECONNRESET) {
		// The peer ended with messages unread, of which the kernel tells before it
		// hands out what the peer had sent, and only once.
		n, files, err = c.conn.Recv(c.buf)
	}
	if errors.Is(err, unix.ECONNRESET) {
		return nil, nil, io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := handoff.Decode(c.buf[:n])
	if err != nil {
		CloseAll(files)
		return nil, nil, err
	}
	return m, files, nil
}

// Close ends the connection and any Recv under way.
func (c *Conn) Close() error { return c.conn.Close() }

// CloseAll closes files that nobody wants.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
