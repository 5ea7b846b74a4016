package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// sendReset closes a TCP connection with RST.
func sendReset(c conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// flood writes until it fails, and returns why.
func flood(c conn) error {
	for data := random(9, 1<<20); ; {
		if _, err := c.Write(data); err != nil {
			return err
		}
	}
}

// floods is what is under way in a test.
type floods struct {
	sync.WaitGroup
	errs sync.Map // by conn
}

func (f *floods) begin(c conn) { f.Go(func() { f.errs.Store(c, flood(c)) }) }

// wasReset reports whether writing to c ended with a reset.
func (f *floods) wasReset(c conn) bool {
	err, _ := f.errs.Load(c)
	e, _ := err.(error)
	return errors.Is(e, syscall.ECONNRESET) || errors.Is(e, syscall.EPIPE)
}

// expectReset reads until the reset that must come.
func expectReset(t *testing.T, c conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other side sees %v, want a reset", err)
	}
}

// A reset of each side, in every state of the flow, resets the other side.
func TestSpliceReset(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, j *joined, resetter, other conn, floods *floods)
	}{
		{"idle", func(*testing.T, *joined, conn, conn, *floods) {}},
		{"the other does not read", func(t *testing.T, j *joined, resetter, _ conn, fl *floods) {
			fl.begin(resetter)
			settle(t, func() uint64 { return j.out.Load() + j.in.Load() })
		}},
		{"the resetter does not read", func(t *testing.T, j *joined, _, other conn, fl *floods) {
			fl.begin(other)
			settle(t, func() uint64 { return j.out.Load() + j.in.Load() })
		}},
		{"neither reads", func(t *testing.T, j *joined, resetter, other conn, fl *floods) {
			fl.begin(other)
			fl.begin(resetter)
			settle(t, func() uint64 { return j.out.Load() + j.in.Load() })
		}},
		{"both stream", func(t *testing.T, j *joined, resetter, other conn, fl *floods) {
			fl.begin(other)
			fl.begin(resetter)
			fl.Go(func() { _, _ = io.Copy(io.Discard, resetter) })
			stacktest.Eventually(t, "bytes to flow", func() bool { return j.out.Load()+j.in.Load() > 8<<20 })
		}},
		{"after its own end of stream", func(t *testing.T, j *joined, resetter, other conn, _ *floods) {
			_ = resetter.CloseWrite()
			checkStream(t, "nothing", other, nil)
		}},
		{"after the other's end of stream", func(t *testing.T, j *joined, resetter, other conn, _ *floods) {
			_ = other.CloseWrite()
			checkStream(t, "nothing", resetter, nil)
		}},
	} {
		for _, byClient := range []bool{true, false} {
			name := c.name + ", by the server"
			if byClient {
				name = c.name + ", by the client"
			}
			t.Run(name, func(t *testing.T) {
				stacktest.NoLeaks(t)
				ls := newLoops(t, 1)
				j := join(t, ls.All()[0], "tcp", nil)
				resetter, other := j.client, j.server
				if !byClient {
					resetter, other = other, resetter
				}
				var fl floods
				c.prepare(t, j, resetter, other, &fl)
				j.lives(t)
				sendReset(resetter)
				if err := j.end(t); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("ended with %v", err)
				}
				fl.Wait()
				if c.name != "after its own end of stream" { // the other was told the end before
					if !fl.wasReset(other) { // a socket tells once, perhaps in a write
						expectReset(t, other)
					}
				} else if _, err := other.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("write after the reset: %v", err)
				}
				if s := ls.Stats(); s.Flows != 0 || s.Pipes > keepPipes {
					t.Errorf("left over: %+v", s)
				}
			})
		}
	}
}

// What a server says before it resets, because it left a request unread, arrives.
func TestSpliceAnswerBeforeReset(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	for range 50 {
		j := join(t, l, "tcp", nil)
		if _, err := j.client.Write(random(1, 100000)); err != nil {
			t.Fatal(err)
		}
		stacktest.Eventually(t, "the request", func() bool { return j.out.Load() == 100000 })
		answer := "413 too large"
		if _, err := j.server.Write([]byte(answer)); err != nil {
			t.Fatal(err)
		}
		_ = j.server.Close() // with bytes unread: RST
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(j.client, got); err != nil || string(got) != answer {
			t.Fatalf("%q, %v", got, err)
		}
		expectReset(t, j.client)
		if err := j.end(t); err == nil {
			t.Error("ended in order")
		}
	}
}

// Peers that are gone, or have sent all and are gone, before the flow begins.
func TestSplicePeerAlreadyGone(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	t.Run("reset", func(t *testing.T) {
		j, a, b := prepared(t, l, "tcp")
		sendReset(j.server)
		j.splice(t, a, b, nil)
		if err := j.end(t); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ended with %v", err)
		}
		expectReset(t, j.client)
	})
	t.Run("closed", func(t *testing.T) {
		for kind := range pairs {
			j, a, b := prepared(t, l, kind)
			write(t, j.server, []byte("bye"), 10, 1)
			_ = j.server.Close()
			j.splice(t, a, b, nil)
			checkStream(t, "bye", j.client, []byte("bye"))
			_ = j.client.CloseWrite()
			if err := j.end(t); err != nil {
				t.Errorf("%s: ended with %v", kind, err)
			}
		}
	})
	t.Run("no sockets at all", func(t *testing.T) {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		j, a, b := prepared(t, l, "tcp")
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(b)
		j.splice(t, a, fd, nil)
		if err := j.end(t); !errors.Is(err, syscall.EPERM) { // epoll does not take regular files
			t.Errorf("ended with %v", err)
		}
		expectReset(t, j.client)
	})
}

// A unix peer that closes with bytes unread, and one that stops reading.
func TestSpliceUnixPeerLeaves(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	j := join(t, l, "unix", nil)
	if _, err := j.client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "the bytes", func() bool { return j.out.Load() == 6 })
	_ = j.server.Close()
	if err := j.end(t); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("ended with %v", err)
	}
	if _, err := io.Copy(io.Discard, j.client); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestSpliceAbort(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	for _, want := range []error{nil, errReset} {
		j := join(t, l, "tcp", nil)
		onLoop(t, l, func() { j.flow.Abort(want); j.flow.Abort(io.EOF) })
		if want == nil {
			want = ErrAborted
		}
		if err := j.end(t); !errors.Is(err, want) {
			t.Errorf("ended with %v, want %v", err, want)
		}
		onLoop(t, l, func() { j.flow.Abort(nil) })
		expectReset(t, j.client)
		expectReset(t, j.server)
	}
}

// A process that dies while a direction is open must not look like the end of its
// stream; one that has passed the end on must not take it back.
func TestSpliceLinger(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	j, a, b := prepared(t, l, "tcp")
	j.splice(t, a, b, nil)
	linger := func(fd int) (on bool) {
		onLoop(t, l, func() {
			v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LINGER)
			on = err == nil && v != 0
		})
		return on
	}
	if !linger(a) || !linger(b) {
		t.Error("closing would not reset")
	}
	_ = j.client.CloseWrite()
	checkStream(t, "end", j.server, nil)
	stacktest.Eventually(t, "the ended direction not to be reset", func() bool { return !linger(b) })
	if !linger(a) {
		t.Error("closing would not reset the open direction")
	}
	for _, fd := range []int{a, b} {
		for option, want := range map[int]int{unix.TCP_KEEPIDLE: keepaliveIdle, unix.TCP_KEEPINTVL: keepaliveInterval,
			unix.TCP_KEEPCNT: keepaliveCount, unix.TCP_NODELAY: 1} {
			if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, option); err != nil || v != want {
				t.Errorf("option %d: %d, %v, want %d", option, v, err, want)
			}
		}
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || v != 1 {
			t.Errorf("keepalive: %d, %v", v, err)
		}
	}
	_ = j.server.CloseWrite()
	if err := j.end(t); err != nil {
		t.Error(err)
	}
}

// Urgent bytes stay in the stream, wherever they are in it and whatever moves it.
func TestSpliceUrgent(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	for _, size := range []int{1, 1000, messageLen, 3 * messageLen, 400000} {
		j := join(t, l, "tcp", nil)
		data := random(uint64(size), size)
		var wg sync.WaitGroup
		wg.Go(func() {
			raw, err := j.client.SyscallConn()
			if err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				_, _ = j.client.Write(data)
				for sent := false; !sent; {
					_ = raw.Control(func(fd uintptr) {
						err := unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
						sent = err != unix.EAGAIN
						if sent && err != nil {
							t.Error(err)
						}
					})
					time.Sleep(time.Millisecond)
				}
			}
			_ = j.client.CloseWrite()
		})
		var want []byte
		for range 20 {
			want = append(append(want, data...), '!')
		}
		checkStream(t, "with urgent bytes", j.server, want)
		wg.Wait()
		_ = j.server.CloseWrite()
		if err := j.end(t); err != nil {
			t.Error(err)
		}
	}
}
