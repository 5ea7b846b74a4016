package relay

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// kept is a flow that is stepped by hand and what became of its socket b.
type kept struct {
	*Loop
	client, a, b, server int
	fd                   int // what Keep got, -1 before
	done                 bool
	err                  error
	flow                 *Flow
}

func newKept(t *testing.T) *kept {
	k := &kept{Loop: handLoop(t), fd: -1}
	k.client, k.a, k.b, k.server = socketPairs(t, "tcp")
	k.splice()
	return k
}

func (k *kept) splice() {
	k.fd, k.done = -1, false
	k.flow = k.Splice(k.a, k.b, Splice{Keep: func(fd int) { k.fd = fd }, Done: func(err error) { k.done, k.err = true, err }})
}

func (k *kept) finish(t *testing.T) {
	t.Helper()
	stacktest.Eventually(t, "the flow to end", func() bool {
		k.step(1)
		return k.done
	})
}

// empty wants a socket that cannot be told from a fresh one.
func empty(t *testing.T, fd int) {
	t.Helper()
	if n, errno := recv(int32(fd), make([]byte, 1), 0); errno != unix.ENOTCONN {
		t.Errorf("a kept socket reads %d bytes, %v; want ENOTCONN", n, errno)
	}
	if state, errno := tcpState(int32(fd)), pendingError(int32(fd)); state != tcpClose || errno != 0 {
		t.Errorf("a kept socket is in state %d with the error %v", state, errno)
	}
	if n, err := unix.IoctlGetInt(fd, unix.SIOCINQ); err != nil || n != 0 {
		t.Errorf("a kept socket holds %d bytes: %v", n, err)
	}
}

// A kept socket serves another flow, whichever side ended first, and nothing of the
// first flow is in the second one.
func TestKeep(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, first := range []string{"client", "server", "both at once"} {
		t.Run(first, func(t *testing.T) {
			k := newKept(t)
			for round := range 3 {
				out, in := random(uint64(2*round), 3000), random(uint64(2*round+1), 5000)
				_, _ = unix.Write(k.client, out)
				_, _ = unix.Write(k.server, in)
				if got := collect(t, k.Loop, k.server, len(out)); !bytes.Equal(got, out) {
					t.Fatalf("round %d: the server got other bytes", round)
				}
				if got := collect(t, k.Loop, k.client, len(in)); !bytes.Equal(got, in) {
					t.Fatalf("round %d: the client got other bytes", round)
				}
				switch first {
				case "client":
					_ = unix.Shutdown(k.client, unix.SHUT_WR)
					collect(t, k.Loop, k.server, 1)
					_ = unix.Shutdown(k.server, unix.SHUT_WR)
				case "server":
					_ = unix.Shutdown(k.server, unix.SHUT_WR)
					collect(t, k.Loop, k.client, 1)
					_ = unix.Shutdown(k.client, unix.SHUT_WR)
				default:
					_ = unix.Shutdown(k.client, unix.SHUT_WR)
					_ = unix.Shutdown(k.server, unix.SHUT_WR)
				}
				k.finish(t)
				if k.fd != k.b || k.err != nil {
					t.Fatalf("round %d: kept %d, %v; want %d", round, k.fd, k.err, k.b)
				}
				empty(t, k.fd)
				k.again(t)
			}
			_, _ = unix.Close(k.client), unix.Close(k.server)
			k.finish(t)
			if k.fd >= 0 {
				unix.Close(k.fd)
			}
		})
	}
}

// again connects the kept socket to another server.
func (k *kept) again(t *testing.T) {
	t.Helper()
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := unix.Listen(listener, 1); err != nil { // bound to a free port
		t.Fatal(err)
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		t.Fatal(err)
	}
	at.(*unix.SockaddrInet4).Addr = [4]byte{127, 0, 0, 1}
	for err = unix.Connect(k.fd, at); err == unix.EINPROGRESS || err == unix.EALREADY; err = unix.Connect(k.fd, at) {
	}
	if err != nil {
		t.Fatalf("connect a kept socket: %v", err)
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(k.client)
	unix.Close(k.server)
	b := k.fd
	client, a, spareB, spareServer := socketPairs(t, "tcp")
	unix.Close(spareB)
	unix.Close(spareServer)
	k.client, k.a, k.b, k.server = client, a, b, server
	k.splice()
}

// What has anything left in it, or failed, is not kept, and ends as it does without
// Keep.
func TestNotKept(t *testing.T) {
	stacktest.NoLeaks(t)
	data := random(1, 200<<10)
	for _, c := range []struct {
		name   string
		end    func(t *testing.T, k *kept)
		got    []byte // by the server after the end
		failed bool
	}{
		{"the server has not read", func(t *testing.T, k *kept) {
			if err := unix.SetsockoptInt(k.server, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Write(k.client, data); n != len(data) {
				t.Fatalf("wrote %d bytes: %v", n, err)
			}
			_, _ = unix.Shutdown(k.client, unix.SHUT_WR), unix.Shutdown(k.server, unix.SHUT_WR)
		}, data, false},
		{"the server resets", func(_ *testing.T, k *kept) {
			_, _ = unix.Write(k.server, data[:100])
			setLinger(int32(k.server), true)
			unix.Close(k.server)
			k.server = -1
		}, nil, true},
		{"the client resets", func(_ *testing.T, k *kept) {
			_, _ = unix.Write(k.client, data[:100])
			setLinger(int32(k.client), true)
			unix.Close(k.client)
			k.client = -1
		}, nil, true},
		{"the server resets after the client's end", func(t *testing.T, k *kept) {
			_ = unix.Shutdown(k.client, unix.SHUT_WR)
			collect(t, k.Loop, k.server, 1)
			setLinger(int32(k.server), true)
			unix.Close(k.server)
			k.server = -1
		}, nil, true},
		{"the loop ends after the client's end", func(t *testing.T, k *kept) {
			_ = unix.Shutdown(k.client, unix.SHUT_WR)
			collect(t, k.Loop, k.server, 1)
			k.flow.Abort(ErrClosed)
		}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKept(t)
			c.end(t, k)
			k.finish(t)
			if k.fd >= 0 || (k.err != nil) != c.failed {
				t.Errorf("kept %d, %v; want nothing, failed %v", k.fd, k.err, c.failed)
			}
			if c.got != nil {
				if got := collect(t, k.Loop, k.server, len(c.got)); !bytes.Equal(got, c.got) {
					t.Errorf("the server got %d bytes, want %d", len(got), len(c.got))
				}
			}
			for _, fd := range []int{k.client, k.server} {
				if fd >= 0 {
					unix.Close(fd)
				}
			}
		})
	}
}

// An error that nobody has asked for yet would be the next connection's.
func TestRetireWithAnError(t *testing.T) {
	stacktest.NoLeaks(t)
	l := handLoop(t)
	client, a, b, server := socketPairs(t, "tcp")
	f := l.Splice(a, b, Splice{})
	setLinger(int32(server), true)
	unix.Close(server)
	stacktest.Eventually(t, "the reset to arrive", func() bool { return tcpState(int32(b)) == tcpClose })
	if f.sides[sideB].shut = true; f.retire(&f.sides[sideB]) {
		t.Error("a socket with an error was retired")
	}
	f.Abort(nil)
	l.step(0)
	unix.Close(client)
}

// What a client has sent before its flow begins goes to the server in the first turn,
// without an event.
func TestFirstTurn(t *testing.T) {
	stacktest.NoLeaks(t)
	l := handLoop(t)
	client, a, b, server := socketPairs(t, "tcp")
	defer unix.Close(client)
	defer unix.Close(server)
	_, _ = unix.Write(client, []byte("hello"))
	queued(t, a, 5)
	f := l.Splice(a, b, Splice{})
	l.turn()
	queued(t, server, 5)
	f.Abort(nil)
	l.turn()
}

func TestLater(t *testing.T) {
	stacktest.NoLeaks(t)
	ended := false
	t.Cleanup(func() {
		if !ended {
			t.Error("what was put off got lost at the end")
		}
	})
	l := handLoop(t)
	defer l.Later(func() { ended = true })
	var got []int
	l.Later(func() {
		got = append(got, 1)
		l.Later(func() { got = append(got, 3) })
	})
	l.Later(func() { got = append(got, 2) })
	l.catchUp()
	l.catchUp()
	if want := []int{1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("ran %v, want %v", got, want)
	}
}
