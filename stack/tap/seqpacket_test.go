package tap_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// newSocket is a device on a seqpacket socket, and its other side, which blocks.
func newSocket(t *testing.T) (d *tap.Device, far int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	d, err = tap.New(os.NewFile(uintptr(fds[0]), "near"), tap.Seqpacket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	timeout := unix.NsecToTimeval(int64(stacktest.Patience))
	if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return d, fds[1]
}

// take reads one frame, of which up to 2 KiB are kept.
func take(t *testing.T, d *tap.Device) (length int, frame []byte) {
	t.Helper()
	hdr, head, body := bytes.Repeat([]byte{0xff}, tap.HeaderLen), make([]byte, 128), make([]byte, 1920)
	n, err := d.Readv(hdr, head, body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(hdr, make([]byte, tap.HeaderLen)) {
		t.Errorf("header % x, want none", hdr)
	}
	return n, append(head, body...)[:min(n, 2048)]
}

func TestSeqpacket(t *testing.T) {
	d, far := newSocket(t)
	if d.Offloads() != (tap.Offloads{}) || d.Notice() != "" || d.Kind().String() != "seqpacket" {
		t.Errorf("%s with %s, %q", d.Kind(), d.Offloads(), d.Notice())
	}
	buf := make([]byte, 1<<16)
	for _, size := range []int{14, 60, 1514, 65534} {
		frame := pattern(size)
		if err := write(d, tap.Header{}, frame); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(far, buf); err != nil || !bytes.Equal(buf[:n], frame) {
			t.Errorf("%d bytes out: %d came, %v", size, n, err)
		}
	}
	// Any length comes in, the true one is told, and each message is by itself.
	for _, size := range []int{1, 13, 14, 2048, 2049, 65534, 100000} {
		frame := pattern(size)
		for _, b := range [][]byte{frame, []byte("next")} {
			if _, err := unix.Write(far, b); err != nil {
				t.Fatal(err)
			}
		}
		if n, got := take(t, d); n != size || !bytes.Equal(got, frame[:min(size, 2048)]) {
			t.Errorf("%d bytes in: %d told, %d kept", size, n, len(got))
		}
		if _, got := take(t, d); string(got) != "next" {
			t.Errorf("behind %d bytes came %q", size, got)
		}
	}
	for _, h := range []tap.Header{{NeedsCsum: true, CsumStart: 34, CsumOffset: 16}, {GSO: tap.GSOTCPv4, Segment: 100}} {
		if err := write(d, h, pattern(60)); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%+v: %v, want EINVAL", h, err)
		}
	}
	if err := write(d, tap.Header{}, pattern(13)); err == nil {
		t.Error("a frame without an Ethernet header was written")
	}
}

// TestSeqpacketEnds: an empty message is none of the ends that a connection has.
func TestSeqpacketEnds(t *testing.T) {
	for name, end := range map[string]func(far int) error{
		"close":    unix.Close,
		"shutdown": func(far int) error { return unix.Shutdown(far, unix.SHUT_WR) },
	} {
		for _, unread := range []bool{false, true} {
			d, far := newSocket(t)
			if err := unix.Sendto(far, nil, 0, nil); err != nil {
				t.Fatal(err)
			}
			if n, _ := take(t, d); n != 0 {
				t.Fatalf("%s: %d bytes, want an empty message", name, n)
			}
			if unread {
				if err := write(d, tap.Header{}, pattern(60)); err != nil {
					t.Fatal(err)
				}
			}
			own, err := unix.Dup(far)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(own)
			if name == "close" {
				unix.Close(own)
			}
			if err := end(far); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Readv(make([]byte, tap.HeaderLen), make([]byte, 128)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%s, unread %t: %v, want ECONNRESET", name, unread, err)
			}
			if name == "close" {
				if err := write(d, tap.Header{}, pattern(60)); err == nil {
					t.Error("written to nobody")
				}
			}
		}
	}
}

// TestSeqpacketDescriptors: what comes with a frame does not stay.
func TestSeqpacketDescriptors(t *testing.T) {
	d, far := newSocket(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = unix.Sendmsg(far, pattern(60), unix.UnixRights(int(w.Fd()), int(w.Fd())), nil, 0)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := take(t, d); n != 60 {
		t.Errorf("%d bytes", n)
	}
	if err := r.SetReadDeadline(time.Now().Add(stacktest.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the pipe's other end is still open: %v", err)
	}
}

// TestSeqpacketStalls: who takes no frames holds us up for a bounded time, loses what
// comes after, and gets what comes when it has made room.
func TestSeqpacketStalls(t *testing.T) {
	d, far := newSocket(t)
	frame := pattern(1514)
	fill := func() (err error) {
		for range 1 << 16 {
			if err = write(d, tap.Header{}, frame); err != nil {
				return err
			}
		}
		return nil
	}
	if err := fill(); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("a socket that nobody reads: %v", err)
	}
	lost := 0
	for start := time.Now(); lost < 1000; lost++ {
		if err := write(d, tap.Header{}, frame); err == nil {
			t.Fatal("a frame was written into a full socket")
		}
		if time.Since(start) > stacktest.Patience {
			t.Fatalf("only %d frames were lost in %v: each waits", lost, stacktest.Patience)
		}
	}
	drain(t, far)
	if err := fill(); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("after it was read from: %v", err)
	}
	if n := drain(t, far); n < 2 {
		t.Errorf("%d frames came after it was read from", n)
	}
}

// drain reads what is there and returns how many frames it was.
func drain(t *testing.T, fd int) (n int) {
	t.Helper()
	buf := make([]byte, 2048)
	for {
		_, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

// TestSeqpacketCloseWhileFull: Close does not wait for the other side.
func TestSeqpacketCloseWhileFull(t *testing.T) {
	d, _ := newSocket(t)
	ended := make(chan error, 1)
	full := make(chan struct{})
	go func() {
		said := false
		for {
			err := write(d, tap.Header{}, pattern(60000))
			switch {
			case errors.Is(err, unix.ENOBUFS) && !said:
				said = true
				close(full)
			case err != nil && !errors.Is(err, unix.ENOBUFS):
				ended <- err
				return
			}
		}
	}()
	select {
	case <-full:
	case <-time.After(stacktest.Patience):
		t.Fatal("the socket does not fill")
	}
	d.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("the writer ended with %v", err)
		}
	case <-time.After(stacktest.Patience):
		t.Fatal("the writer still waits")
	}
}

// TestSeqpacketRefuses: what is no connected socket of the type.
func TestSeqpacketRefuses(t *testing.T) {
	for name, open := range map[string]func() (int, error){
		"a stream socket": func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) },
		"no connection":   func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0) },
		"a file":          func() (int, error) { return unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0) },
	} {
		fd, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if d, err := tap.New(os.NewFile(uintptr(fd), name), tap.Seqpacket); err == nil {
			d.Close()
			t.Errorf("%s was taken", name)
		}
	}
}
