package sockcall

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestAfterAccept fixes what follows the errors that matter.
func TestAfterAccept(t *testing.T) {
	for errno, want := range map[unix.Errno]AcceptStep{
		unix.EAGAIN: AcceptEmpty, unix.ECONNABORTED: AcceptNext, unix.EPERM: AcceptNext, unix.EHOSTUNREACH: AcceptNext,
		unix.EMFILE: AcceptShort, unix.ENFILE: AcceptShort, unix.ENOMEM: AcceptShort, unix.ENOBUFS: AcceptShort,
		unix.EINVAL: AcceptDead, unix.ENOTSOCK: AcceptDead,
	} {
		if got := AfterAccept(errno); got != want {
			t.Errorf("accept: %v leads to %d, want %d", errno, got, want)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	if got := OpenFiles(); got != r.Cur {
		t.Errorf("%d, want the limit %d", got, r.Cur)
	}
}
