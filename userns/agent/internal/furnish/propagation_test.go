package furnish

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
)

// TestPropagations: every mode that a supervisor may ask for is known, and nothing is
// shared before all is furnished.
func TestPropagations(t *testing.T) {
	for _, mode := range append(handoff.Propagations[:], "") {
		p, known := propagations[mode]
		if !known {
			t.Errorf("%q is unknown", mode)
		}
		if p.cut == 0 || p.cut&unix.MS_SHARED != 0 || p.share != 0 && p.share&unix.MS_SHARED == 0 {
			t.Errorf("%q: %+v", mode, p)
		}
	}
	if err := cutPropagation("unbindable"); err == nil {
		t.Error("an unknown mode was taken")
	}
}

// TestCoverInCopy: in a copied-up directory our file takes the link's place, and only
// there; the original stays as it is.
func TestCoverInCopy(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := cutPropagation("rprivate"); err != nil {
		t.Fatal(err)
	}
	for _, copied := range []bool{true, false} {
		dir := coverable(t)
		if err := copyUp(dir, ""); err != nil {
			t.Fatal(err)
		}
		c, err := openCover(dir+"/file", coverable(t)+"/file")
		if err != nil {
			t.Fatal(err)
		}
		c.copied = &copied
		for range 2 { // also when it has to be put back
			if err := c.put(); err != nil || !c.inPlace() {
				t.Fatalf("copied %v: %v, in place %v", copied, err, c.inPlace())
			}
			if isFile := c.isFile(); isFile != copied {
				t.Errorf("copied %v: the target itself is our file: %v", copied, isFile)
			}
			if err := unix.Unmount(dir+"/file", unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.source.Close()
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if got := read(t, dir+"/file"); got != dir {
			t.Errorf("copied %v: the original reads %q", copied, got)
		}
	}
}

// coverable makes a directory with a file that holds its path.
func coverable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir+"/file", dir)
	return dir
}

// TestLoopbackUp: the interface of the calling thread's namespace, with its address.
func TestLoopbackUp(t *testing.T) {
	if !inside(t) {
		return
	}
	up := func() bool {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}) == nil
	}
	if up() {
		t.Fatal("127.0.0.1 is there already")
	}
	for range 2 {
		if err := loopbackUp(); err != nil || !up() {
			t.Fatalf("%v; 127.0.0.1 is there: %v", err, up())
		}
	}
}
