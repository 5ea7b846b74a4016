package tap

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fullDevice returns a packet device over a socket pair, whose far end takes
// few frames before it is full, and the far end.
func fullDevice(t *testing.T) (*Device, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	d := &Device{kind: Packet, file: os.NewFile(uintptr(fds[0]), "device"), fd: fds[0]}
	if d.raw, err = d.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	d.read.fn = d.tryRead
	t.Cleanup(func() {
		d.Close()
		unix.Close(fds[1])
	})
	return d, fds[1]
}

func numbered(n uint32) []unix.Iovec {
	b := make([]byte, HeaderLen+200)
	Header{}.Put(b)
	binary.BigEndian.PutUint32(b[HeaderLen+100:], n)
	return appendIovec(nil, b)
}

func TestFullDeviceHoldsTheWriterUpAndLosesNothing(t *testing.T) {
	const frames = 2000
	d, far := fullDevice(t)
	failed := make(chan error, 1)
	go func() {
		for i := range uint32(frames) {
			if err := d.Writev(numbered(i)); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	buf := make([]byte, 1000)
	for i := range uint32(frames) {
		n := receive(t, far, buf)
		// The header of a packet socket is two bytes shorter.
		if n != HeaderLen-2+200 || binary.BigEndian.Uint32(buf[HeaderLen-2+100:]) != i {
			t.Fatalf("frame %d: %d bytes, number %d", i, n, binary.BigEndian.Uint32(buf[HeaderLen-2+100:]))
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, fd int, buf []byte) int {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		n, err := unix.Read(fd, buf)
		if err == nil {
			return n
		}
		if !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, 100)
	}
	t.Fatal("no frame within 20 s")
	return 0
}

// A device that is full for good, because nobody takes frames at the far end,
// must not keep Close waiting.
func TestCloseEndsWritersOfAFullDevice(t *testing.T) {
	d, _ := fullDevice(t)
	for full := false; !full; {
		_, err := unix.Write(d.fd, make([]byte, 100))
		full = errors.Is(err, unix.EAGAIN)
	}
	const writers = 4
	ended := make(chan error, writers)
	for i := range writers {
		go func() { ended <- d.Writev(numbered(uint32(i))) }()
	}
	for d.closing.TryLock() { // until a writer is inside
		d.closing.Unlock()
		time.Sleep(time.Millisecond)
	}
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	for range writers {
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("writer ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a writer of the full device is still waiting 20 s after Close")
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
