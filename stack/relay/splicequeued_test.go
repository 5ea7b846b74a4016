package relay

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// The tests of this file queue something and then step the loop, so that what it
// finds does not depend on timing.

// collect steps the loop until the peer has size bytes or the end of stream.
func collect(t *testing.T, l *Loop, fd, size int) []byte {
	t.Helper()
	var got []byte
	buf := make([]byte, 1<<20)
	for end := time.Now().Add(stacktest.Patience); len(got) < size; {
		if time.Now().After(end) {
			t.Fatalf("%d of %d bytes have come", len(got), size)
		}
		l.step(1)
		n, errno := recv(int32(fd), buf, 0)
		if errno == 0 && n == 0 {
			break
		}
		if errno == 0 {
			got = append(got, buf[:n]...)
		}
	}
	return got
}

// queued waits until a socket holds n bytes.
func queued(t *testing.T, fd, n int) {
	t.Helper()
	stacktest.Eventually(t, "bytes to be queued", func() bool {
		have, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err == nil && have >= n
	})
}

// A read stops before urgent data; what comes after it must not be forgotten, nor be
// taken for the end of the stream when that has come too.
func TestSpliceStopsAtUrgentData(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, c := range []struct {
		before, after int
		fin           bool
	}{
		{10, 10, false}, {10, 10, true}, {0, 10, false}, {0, 0, false},
		{messageLen, 10, false}, {messageLen + 20000, 10000, false}, {messageLen + 20000, 10000, true},
	} {
		l := handLoop(t)
		client, a, b, server := socketPairs(t, "tcp")
		first, rest := random(1, c.before), random(2, c.after)
		want := append(append(bytes.Clone(first), '!'), rest...)
		_, err1 := unix.Write(client, first)
		err2 := unix.Sendto(client, []byte("!"), unix.MSG_OOB, nil)
		_, err3 := unix.Write(client, rest)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		if c.fin {
			_ = unix.Shutdown(client, unix.SHUT_WR)
		}
		queued(t, a, c.before)
		l.Splice(a, b, Splice{})
		more := 0
		if c.fin {
			more = 1 // to the end of stream
		}
		if got := collect(t, l, server, len(want)+more); !bytes.Equal(got, want) {
			t.Errorf("%+v: %d bytes, want %d", c, len(got), len(want))
		}
		_, _ = unix.Close(client), unix.Close(server)
	}
}

// A read from a unix socket stops after descriptors that were passed with the bytes.
// The bytes go on, the descriptors are closed.
func TestSpliceStopsAtDescriptors(t *testing.T) {
	stacktest.NoLeaks(t)
	l := handLoop(t)
	client, a, b, server := socketPairs(t, "unix")
	rights := unix.UnixRights(int(os.Stdin.Fd()))
	err1 := unix.Sendmsg(client, []byte("with"), rights, nil, 0)
	_, err2 := unix.Write(client, []byte(" without"))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	l.Splice(a, b, Splice{})
	if got := collect(t, l, server, 12); string(got) != "with without" {
		t.Errorf("%q", got)
	}
	_, _ = unix.Close(client), unix.Close(server)
}

// The loop finds out by writing that a server has answered and reset: the answer
// still goes on.
func TestSpliceAnswerFoundByWriting(t *testing.T) {
	stacktest.NoLeaks(t)
	l := handLoop(t)
	client, a, b, server := socketPairs(t, "tcp")
	var ended error
	l.Splice(a, b, Splice{Done: func(err error) { ended = err }})
	_, _ = unix.Write(client, []byte("request"))
	if got := collect(t, l, server, 0); len(got) > 0 {
		t.Fatal(got)
	}
	queuedAt := func() bool { n, err := unix.IoctlGetInt(server, unix.SIOCINQ); return err == nil && n == 7 }
	for !queuedAt() {
		l.step(1)
	}
	_, _ = unix.Write(client, []byte("more"))
	queued(t, a, 4)
	n := l.poll() // learns of "more", and not of what follows
	for i := range l.events[:n] {
		l.dispatch(&l.events[i])
	}
	_, _ = unix.Write(server, []byte("answer"))
	_ = unix.Close(server) // with bytes unread: RST
	queued(t, b, 6)
	l.turn()
	for ended == nil {
		l.step(1)
	}
	if !errors.Is(ended, syscall.ECONNRESET) && !errors.Is(ended, syscall.EPIPE) {
		t.Errorf("ended with %v", ended)
	}
	var got []byte
	buf := make([]byte, 100)
	stacktest.Eventually(t, "the reset", func() bool {
		n, errno := recv(int32(client), buf, 0)
		got = append(got, buf[:max(n, 0)]...)
		return errno == unix.ECONNRESET || errno == 0 && n == 0
	})
	if string(got) != "answer" {
		t.Errorf("the client got %q", got)
	}
	_ = unix.Close(client)
}
