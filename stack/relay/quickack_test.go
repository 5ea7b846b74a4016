package relay

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// unacknowledged is how many bytes a socket has sent that its peer's kernel has not
// acknowledged.
func unacknowledged(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// burst is a piece that is relayed as bulk and a short end. Its sender has pushed both,
// and the kernel that gets the end would keep its acknowledgment back for an answer.
var burst = [2]int{3 * messageLen, 100}

// bursts sends a number of them, each after an answer, and wants the end of nearly every
// one to be acknowledged as soon as it has come out: left to itself the kernel keeps 6 to
// 99 % of the acknowledgments back, and it may put off its work once in a while.
func bursts(t *testing.T, client int, pass func(n int), answer func()) {
	t.Helper()
	const rounds = 400
	late := 0
	for range rounds {
		for _, n := range burst {
			if sent, err := unix.Write(client, random(1, n)); sent != n || err != nil {
				t.Fatal(sent, err)
			}
			pass(n)
		}
		if unacknowledged(t, client) > 0 {
			late++
		}
		answer()
	}
	if late > rounds/20 {
		t.Errorf("the ends of %d of %d bursts were not acknowledged at once", late, rounds)
	}
}

// The end of a burst is acknowledged at once, whichever relay it goes through.
func TestBurstEndIsAcknowledged(t *testing.T) {
	stacktest.NoLeaks(t)
	t.Run("sockets", func(t *testing.T) {
		k := newKept(t)
		buf := make([]byte, burst[0])
		pass := func(n int) { // at once, or the time for the acknowledgment has come anyway
			stacktest.Eventually(t, "bytes to come out", func() bool {
				for range 10000 {
					k.step(0)
					if got, errno := recv(int32(k.server), buf, 0); errno == 0 {
						n -= got
					}
					if n == 0 {
						return true
					}
				}
				return false
			})
		}
		bursts(t, k.client, pass, func() {
			if _, err := unix.Write(k.server, []byte("more")); err != nil {
				t.Fatal(err)
			}
			collect(t, k.Loop, k.client, 4)
		})
		_, _ = unix.Close(k.client), unix.Close(k.server)
	})
	t.Run("netstack", func(t *testing.T) {
		host, server := stacktest.TCPPair(t)
		raw, err := host.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		reader, buf := newHostReader(raw), make([]byte, burst[0])
		fd := takeFD(t, server)
		pass := func(n int) {
			for n > 0 {
				got, err := reader.wait()
				if err == nil {
					err = reader.readFull(buf[:got])
				}
				if err != nil {
					t.Fatal(err)
				}
				n -= got
			}
		}
		answer := make([]byte, 4)
		bursts(t, fd, pass, func() {
			if _, err := host.Write(answer); err != nil {
				t.Fatal(err)
			}
			if n, errno := recv(int32(fd), answer, 0); n != len(answer) || errno != 0 {
				t.Fatal(n, errno)
			}
		})
		_ = unix.Close(fd)
	})
}
