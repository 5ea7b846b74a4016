package relay

import (
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// conn is what TCP and unix connections have in common.
type conn interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// joined is a flow under test: what client writes arrives at server, through sockets
// a and b of a loop.
type joined struct {
	client, server conn
	loop           *Loop
	flow           *Flow
	out, in        atomic.Uint64
	ended          chan error // Done's argument
	calls          atomic.Int32
}

// pairs makes connected sockets of each kind.
var pairs = map[string]func(testing.TB) (a, b conn){"tcp": tcpPair, "unix": unixPair}

func tcpPair(t testing.TB) (a, b conn) { return stacktest.TCPPair(t) }

func unixPair(t testing.TB) (a, b conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

// takeFD turns a connection into a bare descriptor.
func takeFD(t testing.TB, c conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if cerr := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return fd
}

// newLoops returns loops that end with the test.
func newLoops(t testing.TB, n int) *Loops {
	t.Helper()
	ls, err := NewLoops(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ls.Close)
	return ls
}

// join makes a flow between pairs of a kind.
func join(t testing.TB, l *Loop, kind string, prefix []byte) *joined {
	t.Helper()
	j, a, b := prepared(t, l, kind)
	j.splice(t, a, b, prefix)
	return j
}

// prepared is a joined without its flow.
func prepared(t testing.TB, l *Loop, kind string) (j *joined, a, b int) {
	t.Helper()
	client, ca := pairs[kind](t)
	cb, server := pairs[kind](t)
	for _, c := range []conn{client, server} {
		_ = c.SetDeadline(time.Now().Add(2 * stacktest.Patience))
	}
	j = &joined{client: client, server: server, loop: l, ended: make(chan error, 4)}
	return j, takeFD(t, ca), takeFD(t, cb)
}

func (j *joined) splice(t testing.TB, a, b int, prefix []byte) {
	t.Helper()
	begun := make(chan struct{})
	ok := j.loop.Do(func() {
		j.flow = j.loop.Splice(a, b, Splice{Out: &j.out, In: &j.in, Prefix: prefix, Done: func(err error) {
			j.calls.Add(1)
			j.ended <- err
		}})
		close(begun)
	})
	if !ok {
		t.Fatal("the loop is closed")
	}
	<-begun
}

// end waits for Done and returns its argument.
func (j *joined) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-j.ended:
		if n := j.calls.Load(); n != 1 {
			t.Errorf("Done was called %d times", n)
		}
		return err
	case <-time.After(2 * stacktest.Patience):
		t.Fatal("the flow has not ended")
		return nil
	}
}

// lives checks that Done has not been called.
func (j *joined) lives(t testing.TB) {
	t.Helper()
	select {
	case err := <-j.ended:
		t.Fatalf("the flow has ended: %v", err)
	default:
	}
}

// onLoop runs fn on the loop's thread and waits for it.
func onLoop(t testing.TB, l *Loop, fn func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Do(func() { fn(); close(done) }) {
		t.Fatal("the loop is closed")
	}
	<-done
}
