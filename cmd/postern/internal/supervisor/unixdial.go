package supervisor

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/splice"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/seam"
)

// maxUnixDials is how many connections to unix sockets are under way at once. They
// take microseconds, unless a file system hangs.
const maxUnixDials = 64

// unixDials connects to unix sockets for the engine, which may not.
type unixDials struct {
	// target says where a rule's socket is: below root, the caller's to close, or with
	// a nil root on the host. It fails if there is no such rule.
	target func(m *handoff.EngineDial) (root *os.File, err error)
	slots  chan struct{} // has one for each dial under way
}

func newUnixDials(target func(*handoff.EngineDial) (*os.File, error)) *unixDials {
	return &unixDials{target: target, slots: make(chan struct{}, maxUnixDials)}
}

// serve answers a request, later. Nobody waits for what a file system holds up: it is
// bounded, has nothing of the session, and ends with the process.
func (d *unixDials) serve(conn *seam.Conn, m *handoff.EngineDial) {
	select {
	case d.slots <- struct{}{}:
	default:
		reply(conn, m.Seq, nil, unix.EAGAIN)
		return
	}
	go func() {
		defer func() { <-d.slots }()
		f, err := d.dial(m)
		reply(conn, m.Seq, f, err)
		if f != nil {
			_ = f.Close()
		}
	}()
}

func (d *unixDials) dial(m *handoff.EngineDial) (*os.File, error) {
	root, err := d.target(m)
	if err != nil {
		return nil, err
	}
	defer closeFiles(root)
	fd, err := splice.DialUnix(root, m.Path)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), m.Path), nil
}

// reply answers an engine; one that is gone needs none.
func reply(conn *seam.Conn, seq uint64, f *os.File, err error) {
	m := &handoff.EngineDialed{Seq: seq}
	if err == nil {
		_ = conn.Send(m, f)
		return
	}
	m.Reason = err.Error()
	m.Errno = uint32(unix.EIO)
	var errno unix.Errno
	if errors.As(err, &errno) {
		m.Errno = uint32(errno)
	}
	_ = conn.Send(m)
}

// unixTarget is unixDials.target: it finds the rule.
func (p *publisher) unixTarget(m *handoff.EngineDial) (root *os.File, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.rules[m.Rule].Listeners {
		if l.TargetPath != m.Path || l.TargetPath == "" || l.Reverse != m.Reverse {
			continue
		}
		if m.Reverse {
			return nil, nil
		}
		return p.root()
	}
	return nil, errors.New("no rule has that unix socket for its target")
}
