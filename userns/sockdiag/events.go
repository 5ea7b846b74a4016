package sockdiag

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// groups are the multicast groups of deaths, 1 to 4 (linux/sock_diag.h): the ends of
// SKNLGRP_INET_TCP_, INET_UDP_, INET6_TCP_ and INET6_UDP_DESTROY.
const groups = 0b1111

// subscribe has deaths of sockets without a peer told on events.
func subscribe(events *os.File) error {
	rc, err := events.SyscallConn()
	if err != nil {
		return fmt.Errorf("subscribe to the ends of sockets: %w", err)
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = subscribeFD(int(fd)) }); err != nil {
		return fmt.Errorf("subscribe to the ends of sockets: %w", err)
	}
	if serr != nil {
		return fmt.Errorf("subscribe to the ends of sockets: %w", serr)
	}
	return nil
}

func subscribeFD(fd int) error {
	// The filter comes first, so that nothing gets past it.
	filter := peerless()
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("attach a filter: %w", err)
	}
	// A bind and no NETLINK_ADD_MEMBERSHIP: a socket without a port of its own has the
	// kernel's, 0, and to the one who sends nothing is multicast (do_one_broadcast).
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
}

// peerless is a classic BPF program that passes messages about sockets without a
// peer's port: listeners and unconnected ones. It is run on one message with its
// header; a shorter message fails the load and is dropped.
func peerless() []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: unix.NLMSG_HDRLEN + atPeer},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// death is what is told of a socket's end: enough to know whether it was one of
// those that we know.
type death struct {
	port uint16
}

// parseDeaths reads one datagram of events. What does not look like an event is
// passed over.
func parseDeaths(b []byte) (list []death) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int64(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > int64(len(b)) {
			return list
		}
		body := b[unix.NLMSG_HDRLEN:n]
		if binary.NativeEndian.Uint16(b[4:]) == sockDiagByFamily && len(body) >= msgLen {
			if _, port, ok := bound(body); ok {
				list = append(list, death{port})
			}
		}
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), int64(len(b))):]
	}
	return list
}
