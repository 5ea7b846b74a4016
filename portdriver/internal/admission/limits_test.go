package admission

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

func TestMayPend(t *testing.T) {
	for _, c := range []struct {
		each, all int64
		want      bool
	}{
		{0, 0, true}, {MaxPendingEach - 1, MaxPendingEach - 1, true}, {MaxPendingEach, MaxPendingEach, false},
		{MaxPendingEach - 1, 500, true}, {MaxPendingEach, 500, false},
		{3, portdriver.MaxPending, true}, {4, portdriver.MaxPending, false}, {4, portdriver.MaxPending - 1, true},
	} {
		if got := MayPend(c.each, c.all); got != c.want {
			t.Errorf("%d of %d: %v", c.each, c.all, got)
		}
	}
}

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
