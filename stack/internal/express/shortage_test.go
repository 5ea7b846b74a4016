package express

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/sockcall"
	"github.com/postern-net/postern/stack/stacktest"
)

// spareDescriptors leaves the process n descriptors until the function returned is
// called, or the test ends.
func spareDescriptors(t *testing.T, n int) (restore func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// Gaps are filled, so that the limit is what is left.
	var filled []*os.File
	top, _ := os.Open("/dev/null")
	filled = append(filled, top)
	highest := highestDescriptor(t)
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		if int(f.Fd()) > highest {
			f.Close()
			break
		}
		filled = append(filled, f)
	}
	limit := before
	limit.Cur = uint64(highest + 1 + n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	done := false
	restore = func() {
		if !done {
			done = true
			_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
			for _, f := range filled {
				f.Close()
			}
		}
	}
	t.Cleanup(restore)
	return restore
}

func highestDescriptor(t *testing.T) (highest int) {
	t.Helper()
	for fd := range 2048 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			highest = fd
		}
	}
	return highest
}

func TestNoDescriptorForTheHost(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	at, _ := r.server(t)
	restore := spareDescriptors(t, 0)
	k := r.key()
	r.take(t, k, at)
	stacktest.Eventually(t, "the fallback", func() bool { return r.count(flow.TCPExpressFallback) == 1 })
	restore()
	r.empty(t)
	if r.count(flow.TCPExpressShort) != 1 || r.lost != 0 || r.count(flow.TCPExpressUnanswered) != 0 {
		t.Errorf("%v", r.flows.Counters.Snapshot())
	}
	r.open(t, k)
}

// The host's socket takes the last descriptor: the client that is connected by then is
// reset, and everything works again as soon as there are descriptors.
func TestNoDescriptorForTheContainer(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	r.patience = 20 * time.Millisecond
	at, l := r.server(t)
	k := r.key()
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	if errno := bindPort(client, k); errno != nil {
		t.Fatal(errno)
	}
	r.sender.hook(func(link.Packet) error {
		if errno := sockcall.Connect(client, k.Target); errno != 0 {
			return errno
		}
		return nil
	})
	restore := spareDescriptors(t, 1)
	r.take(t, k, at)
	stacktest.Eventually(t, "the shortage", func() bool { return r.count(flow.TCPExpressShort) == 1 })
	r.empty(t)
	if _, err := unix.Read(client, make([]byte, 1)); err != unix.ECONNRESET {
		t.Errorf("the client reads %v, want a reset", err)
	}
	restore()
	wantReset(t, "the server", accepted(t, l))
	if n := r.count(flow.TCPExpressFallback); n != 0 {
		t.Errorf("%v", r.flows.Counters.Snapshot())
	}
	r.sender.hook(r.connect)
	r.open(t, r.key())
}

func bindPort(fd int, k flow.Key) error {
	return unix.Bind(fd, &unix.SockaddrInet4{Addr: k.Initiating.Addr().As4(), Port: int(k.Initiating.Port())})
}
