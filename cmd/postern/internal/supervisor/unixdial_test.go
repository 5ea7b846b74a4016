package supervisor

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/seam"
)

// ends returns both ends of a control socket.
func ends(t *testing.T) (ours, theirs *seam.Conn) {
	t.Helper()
	a, b, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ours, err1 := seam.New(a)
	theirs, err2 := seam.New(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// TestUnixDials: an engine is connected to the unix sockets that rules have for their
// targets, and to no others.
func TestUnixDials(t *testing.T) {
	host, inside := t.TempDir(), t.TempDir()
	for _, dir := range []string{host, inside} {
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, dir)
				c.Close()
			}
		}()
	}
	p := newPublisher(PortDriverAuto, slog.New(slog.DiscardHandler))
	p.rules[1] = portdriver.Rule{ID: 1, Listeners: []portdriver.Listener{{Rule: 1, TargetPath: "/s"}}}
	p.rules[2] = portdriver.Rule{ID: 2, Listeners: []portdriver.Listener{{Rule: 2, TargetPath: host + "/s", Reverse: true}}}
	p.rules[3] = portdriver.Rule{ID: 3, Listeners: []portdriver.Listener{{Rule: 3}}}
	p.connect(nil, func() (*os.File, error) { return os.Open(inside) })
	ours, theirs := ends(t)
	for _, c := range []struct {
		m    handoff.EngineDial
		want string
	}{
		{handoff.EngineDial{Rule: 1, Path: "/s"}, inside},
		{handoff.EngineDial{Rule: 2, Path: host + "/s", Reverse: true}, host},
		{handoff.EngineDial{Rule: 1, Path: "/s", Reverse: true}, ""},
		{handoff.EngineDial{Rule: 1, Path: "/../s"}, ""},
		{handoff.EngineDial{Rule: 2, Path: host + "/s"}, ""},
		{handoff.EngineDial{Rule: 2, Path: inside + "/s", Reverse: true}, ""},
		{handoff.EngineDial{Rule: 3}, ""},
		{handoff.EngineDial{Rule: 4, Path: "/s"}, ""},
	} {
		c.m.Seq = 7
		p.dials.serve(ours, &c.m)
		m, files, err := theirs.Recv()
		if err != nil {
			t.Fatal(err)
		}
		answer, ok := m.(*handoff.EngineDialed)
		if !ok || answer.Seq != 7 {
			t.Fatalf("%+v: answered with %#v", c.m, m)
		}
		got := ""
		for _, f := range files {
			b, err := io.ReadAll(f)
			if err != nil {
				t.Error(err)
			}
			got += string(b)
			f.Close()
		}
		if got != c.want || (answer.Reason == "") != (c.want != "") {
			t.Errorf("%+v: connected to %q (%q), want %q", c.m, got, answer.Reason, c.want)
		}
	}
}

// TestUnixDialsBounded: an engine that asks for more than may be under way is told to
// come again.
func TestUnixDialsBounded(t *testing.T) {
	hang := make(chan struct{})
	d := newUnixDials(func(*handoff.EngineDial) (*os.File, error) { <-hang; return nil, unix.ENOENT })
	ours, theirs := ends(t)
	for range maxUnixDials + 1 {
		d.serve(ours, &handoff.EngineDial{Seq: 1})
	}
	answers := make(chan uint32, maxUnixDials+1)
	go func() {
		for {
			m, _, err := theirs.Recv()
			if err != nil {
				return
			}
			answers <- m.(*handoff.EngineDialed).Errno
		}
	}()
	next := func() uint32 {
		select {
		case errno := <-answers:
			return errno
		case <-time.After(30 * time.Second):
			t.Fatal("no answer")
			return 0
		}
	}
	if got := next(); got != uint32(unix.EAGAIN) {
		t.Errorf("one too many: errno %d, want EAGAIN", got)
	}
	close(hang)
	for range maxUnixDials {
		if got := next(); got != uint32(unix.ENOENT) {
			t.Fatalf("errno %d, want ENOENT", got)
		}
	}
}
