package fdpass

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// maxRights is SCM_MAX_FD, the most descriptors that the kernel lets a message
// carry (unix(7)).
const maxRights = 253

// ErrNoDescriptors is wrapped by RecvRaw when this process could not take all
// descriptors of a message: its table is full (RLIMIT_NOFILE, EMFILE).
var ErrNoDescriptors = errors.New("no descriptor left to receive into")

// RecvRaw waits for one message, writes it to buf, and appends the descriptors that
// came along to fds, as numbers. They are the caller's to close, close-on-exec, in
// the mode that their maker chose, and not on Go's poller: for sockets that another
// event loop serves. The other end's close is io.EOF.
//
// ErrNoDescriptors and ErrTruncated (a message longer than buf) lose that message,
// with what came along closed; the connection goes on, and the next call may
// succeed. Every other error is the connection's end.
func (c *Conn) RecvRaw(buf []byte, fds []int) (n int, all []int, err error) {
	oob := make([]byte, unix.CmsgSpace(maxRights*4))
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(buf, oob)
	got, perr := parseRights(oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		// There was room for all that the kernel could send.
		err = ErrNoDescriptors
	case flags&unix.MSG_TRUNC != 0:
		err = ErrTruncated
	case perr != nil:
		err = perr
	case n == 0:
		err = errEmpty
	}
	if err == nil {
		return n, append(fds, got...), nil
	}
	closeAll(got)
	if errors.Is(err, io.EOF) {
		return 0, fds, io.EOF
	}
	return 0, fds, fmt.Errorf("receive descriptors: %w", err)
}
