package fdpass

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func conns(t *testing.T) (a, b *Conn) {
	t.Helper()
	fa, fb, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		f    *os.File
		into **Conn
	}{{fa, &a}, {fb, &b}} {
		c, err := NewConn(end.f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		*end.into = c
	}
	return a, b
}

func countFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// nulls opens /dev/null n times.
func nulls(t *testing.T, n int) []*os.File {
	t.Helper()
	var files []*os.File
	for range n {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

func TestMessagesKeepTheirBoundsAndFiles(t *testing.T) {
	a, b := conns(t)
	before := countFDs(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte{7}, MaxMessage)
	for _, msg := range []struct {
		body  []byte
		files []*os.File
	}{{[]byte("one"), nil}, {[]byte{0}, []*os.File{r, w}}, {big, nil}} {
		if err := a.Send(msg.body, msg.files...); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, MaxMessage)
	if n, files, err := b.Recv(buf); string(buf[:n]) != "one" || len(files) != 0 || err != nil {
		t.Errorf("first: %q, %v, %v", buf[:n], files, err)
	}
	n, files, err := b.Recv(buf)
	if n != 1 || len(files) != 2 || err != nil {
		t.Fatalf("second: %d bytes, %v, %v", n, files, err)
	}
	// The received ends are the sent ones, and close-on-exec.
	for _, f := range files {
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: flags %#x, %v", f.Name(), flags, err)
		}
	}
	w.Close()
	go func() { files[1].Write([]byte("through")); files[1].Close() }()
	if got, err := io.ReadAll(r); string(got) != "through" || err != nil {
		t.Errorf("pipe: %q, %v", got, err)
	}
	files[0].Close()
	r.Close()
	if n, _, err := b.Recv(buf); n != len(big) || !bytes.Equal(buf[:n], big) || err != nil {
		t.Errorf("third: %d bytes, %v", n, err)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestTruncatedMessageIsLostWithItsFiles(t *testing.T) {
	a, b := conns(t)
	files := nulls(t, 3)
	before := countFDs(t)
	if err := a.Send([]byte("longer than the buffer"), files...); err != nil {
		t.Fatal(err)
	}
	if _, got, err := b.Recv(make([]byte, 4)); !errors.Is(err, ErrTruncated) || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

// A peer that does not play by our rules sends more descriptors than we take, or a
// message without bytes.
func TestRudePeer(t *testing.T) {
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
	files := nulls(t, MaxFiles+1)
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	before := countFDs(t)
	if err := unix.Sendmsg(int(fa.Fd()), []byte("x"), unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, got, err := b.Recv(make([]byte, 8)); !errors.Is(err, ErrTruncated) || got != nil {
		t.Errorf("too many descriptors: %v, %v", got, err)
	}
	// By hand, since every wrapper adds a byte.
	oob := unix.UnixRights(fds[:2]...)
	hdr := unix.Msghdr{Control: &oob[0]}
	hdr.SetControllen(len(oob))
	if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, fa.Fd(), uintptr(unsafe.Pointer(&hdr)), 0); errno != 0 {
		t.Fatal(errno)
	}
	if _, got, err := b.Recv(make([]byte, 8)); err == nil || got != nil {
		t.Errorf("empty message: %v, %v", got, err)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestRefusedSends(t *testing.T) {
	a, b := conns(t)
	closed := nulls(t, 1)[0]
	closed.Close()
	for _, tc := range []struct {
		name  string
		body  []byte
		files []*os.File
	}{
		{"empty", nil, nil},
		{"too long", make([]byte, MaxMessage+1), nil},
		{"too many files", []byte{1}, nulls(t, MaxFiles+1)},
		{"closed file", []byte{1}, []*os.File{closed}},
		{"nil file", []byte{1}, []*os.File{nil}},
	} {
		if err := a.Send(tc.body, tc.files...); err == nil {
			t.Errorf("%s: sent", tc.name)
		}
	}
	if err := a.Send([]byte{1}, nulls(t, MaxFiles)...); err != nil {
		t.Errorf("full message: %v", err)
	}
	_, files, err := b.Recv(make([]byte, 1))
	if err != nil || len(files) != MaxFiles {
		t.Errorf("full message: %d files, %v", len(files), err)
	}
	for _, f := range files {
		f.Close()
	}
}

func TestEnds(t *testing.T) {
	a, b := conns(t)
	if err := a.Send([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	a.Close()
	buf := make([]byte, 16)
	if n, _, err := b.Recv(buf); string(buf[:n]) != "last words" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if _, _, err := b.Recv(buf); err != io.EOF {
		t.Errorf("after the close: %v, want io.EOF", err)
	}
	if err := b.Send([]byte{1}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("send to nobody: %v, want EPIPE", err)
	}
}

func TestCloseAndDeadlineInterruptRecv(t *testing.T) {
	a, b := conns(t)
	if err := a.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Recv(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	done := make(chan error)
	go func() {
		_, _, err := b.Recv(make([]byte, 1))
		done <- err
	}()
	b.Close()
	if err := <-done; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("closed under way: %v", err)
	}
}

func TestNewConnRefusesOthers(t *testing.T) {
	before := countFDs(t)
	null := nulls(t, 1)[0]
	if _, err := NewConn(null); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("/dev/null: %v", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if _, err := NewConn(os.NewFile(uintptr(fd), "stream")); !errors.Is(err, unix.EPROTOTYPE) {
			t.Errorf("stream: %v", err)
		}
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before: what is refused has to be closed too", after, before)
	}
}

func TestPeerCred(t *testing.T) {
	a, _ := conns(t)
	cred, err := a.PeerCred()
	if err != nil || int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Getuid() {
		t.Errorf("%+v, %v", cred, err)
	}
}
