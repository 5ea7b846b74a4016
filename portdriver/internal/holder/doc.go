// Package holder finds out which process holds a port of the host.
//
// The kernel lists sockets with their address, owner and inode in /proc/net, and
// each process's descriptors in /proc/PID/fd, as far as the reader may see them
// (proc_pid_fd(5)). Both are read once, at the moment of the question; the answer is
// for an error message and may be out of date.
package holder

import (
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"strconv"
)

// Holder is who holds a port, as far as we may know.
type Holder struct {
	// PID and Name are 0 and "" if the process cannot be seen.
	PID  int
	Name string
	// UID owns the socket. It counts only if Listed is set.
	UID    uint32
	Listed bool
}

// Find looks for the holder of an address and port, network being tcp or udp. The
// unspecified address is held by whoever has the port on any address of the family.
func Find(network string, addr netip.AddrPort) Holder {
	s, ok := findSocket(network, addr)
	if !ok {
		return Holder{}
	}
	h := Holder{UID: s.uid, Listed: true}
	h.PID, h.Name = process(s.inode)
	return h
}

// String is for the words "held by": "nginx (pid 1234)".
func (h Holder) String() string {
	switch {
	case h.PID != 0:
		return fmt.Sprintf("%s (pid %d)", h.Name, h.PID)
	case !h.Listed:
		return "a process that /proc does not show"
	case int64(h.UID) == int64(os.Geteuid()):
		return "a process of this user that /proc does not show"
	}
	name := strconv.FormatUint(uint64(h.UID), 10)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("a process of another user (%s)", name)
}
