package fdpass

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRecvRaw(t *testing.T) {
	fa, fb, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewConn(fb)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var fds []int
	for _, f := range nulls(t, maxRights) {
		fds = append(fds, int(f.Fd()))
	}
	before := countFDs(t)
	if err := unix.Sendmsg(int(fa.Fd()), []byte{3}, unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1)
	n, got, err := b.RecvRaw(buf, []int{-7})
	if err != nil || n != 1 || buf[0] != 3 || len(got) != 1+maxRights || got[0] != -7 {
		t.Fatalf("%d bytes %v, %d descriptors, %v", n, buf, len(got), err)
	}
	for _, fd := range got[1:] {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
		}
		unix.Close(fd)
	}
	// Too long a message, with and without descriptors.
	for _, oob := range [][]byte{nil, unix.UnixRights(fds[:2]...)} {
		if err := unix.Sendmsg(int(fa.Fd()), []byte("long"), oob, nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, got, err := b.RecvRaw(buf, nil); !errors.Is(err, ErrTruncated) || len(got) != 0 {
			t.Errorf("too long: %v, %v", got, err)
		}
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	fa.Close()
	if _, _, err := b.RecvRaw(buf, nil); err != io.EOF {
		t.Errorf("after the close: %v, want io.EOF", err)
	}
}

// A full descriptor table loses one message, and nothing else.
func TestRecvRawWithoutDescriptorsLeft(t *testing.T) {
	fa, fb, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	b, err := NewConn(fb)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	files := nulls(t, 8)
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := unix.Sendmsg(int(fa.Fd()), []byte{1}, unix.UnixRights(fds...), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1)
	free := lowestFree(t)
	before := countFDs(t)
	low := unix.Rlimit{Cur: uint64(free + 3), Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, got, err := b.RecvRaw(buf, nil)
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, ErrNoDescriptors) || len(got) != 0 {
		t.Errorf("%v, %v; want ErrNoDescriptors", got, err)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	_, got, err = b.RecvRaw(buf, nil)
	if err != nil || len(got) != len(fds) {
		t.Errorf("the message after it: %v, %v", got, err)
	}
	closeAll(got)
}

// lowestFree is the number that the next descriptor gets.
func lowestFree(t *testing.T) int {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return int(f.Fd())
}
