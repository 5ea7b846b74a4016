package fdpass

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

var errEmpty = errors.New("a message without bytes")

// Recv waits for one message, writes it to buf and returns its length and the
// descriptors that came along, which are the caller's to close. The other end's
// close is io.EOF. A message that does not fit buf is ErrTruncated and lost.
func (c *Conn) Recv(buf []byte) (n int, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(buf, oob)
	fds, perr := parseRights(oob[:oobn])
	if err == nil {
		err = perr
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = ErrTruncated
	}
	if err == nil && n == 0 {
		err = errEmpty // descriptors without a byte: nobody here sends that
	}
	if err != nil {
		closeAll(fds)
		if errors.Is(err, io.EOF) {
			return 0, nil, io.EOF
		}
		return 0, nil, fmt.Errorf("receive a control message: %w", err)
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return n, files, nil
}

// parseRights collects the descriptors of every SCM_RIGHTS message in oob. On an
// error those found so far are returned too, for closing.
func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
