package fdpass

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sendPauses is how long Send waits before it tries again after ETOOMANYREFS: more
// descriptors of this user's are on their way than we may open (RLIMIT_NOFILE). The
// kernel counts those of all of a user's processes, so they may be other instances';
// they arrive in no time.
var sendPauses = []time.Duration{time.Millisecond, 4 * time.Millisecond, 16 * time.Millisecond, 64 * time.Millisecond, 256 * time.Millisecond}

// Send sends one message. The files stay the caller's and stay open; their
// blocking mode is left alone. A peer that is gone is EPIPE or ECONNRESET.
func (c *Conn) Send(msg []byte, files ...*os.File) error {
	switch {
	case len(msg) == 0:
		return errors.New("send a control message: a message must have at least one byte")
	case len(msg) > MaxMessage:
		return fmt.Errorf("send a control message of %d bytes: the limit is %d", len(msg), MaxMessage)
	case len(files) > MaxFiles:
		return fmt.Errorf("send a control message with %d descriptors: the limit is %d", len(files), MaxFiles)
	}
	if err := withFDs(files, nil, func(fds []int) error { return c.write(msg, fds) }); err != nil {
		return fmt.Errorf("send a control message: %w", err)
	}
	return nil
}

func (c *Conn) write(msg []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.sock.WriteMsgUnix(msg, oob, nil)
	for _, pause := range sendPauses {
		if !errors.Is(err, unix.ETOOMANYREFS) {
			break
		}
		time.Sleep(pause)
		n, _, err = c.sock.WriteMsgUnix(msg, oob, nil)
	}
	if err == nil && n != len(msg) {
		err = fmt.Errorf("%d of %d bytes: %w", n, len(msg), ErrTruncated)
	}
	return err
}

// withFDs calls use with the descriptors of files, each kept open meanwhile. It
// goes through SyscallConn instead of File.Fd so that a closed file is an error,
// never another file's number.
func withFDs(files []*os.File, fds []int, use func([]int) error) error {
	if len(files) == 0 {
		return use(fds)
	}
	if files[0] == nil {
		return os.ErrInvalid
	}
	rc, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var uerr error
	if err := rc.Control(func(fd uintptr) {
		uerr = withFDs(files[1:], append(fds, int(fd)), use)
	}); err != nil {
		return err
	}
	return uerr
}
