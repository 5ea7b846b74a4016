package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// localWithin bounds the wait for an address, localPause is between two looks. The
// kernel usually has it within a millisecond.
const (
	localWithin = 500 * time.Millisecond
	localPause  = 200 * time.Microsecond
)

// awaitLocal waits until packets to an IPv6 address of ours are taken. The kernel
// acknowledges the address first and routes it later, from a work queue, also without
// duplicate address detection (addrconf_dad_work); a packet that comes in between is
// dropped, which costs its sender a second. An address that takes longer than
// localWithin is no failure: it will come.
func awaitLocal(route *os.File, addr netip.Addr) error {
	if !addr.Is6() {
		return nil // IPv4's are routed before the answer
	}
	for end := time.Now().Add(localWithin); ; time.Sleep(localPause) {
		local, err := isLocal(route, addr)
		if local || err != nil || time.Now().After(end) {
			return err
		}
	}
}

// isLocal asks for the route to an IPv6 address.
func isLocal(route *os.File, addr netip.Addr) (local bool, err error) {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = unix.AF_INET6, 128
	m := newMessage(unix.RTM_GETROUTE, 0, b)
	m.attr(unix.RTA_DST, addr.AsSlice())
	const kind = 7 // rtm_type of struct rtmsg (rtnetlink(7))
	err = exchange(route, fmt.Sprintf("look up the route to %s", addr), m, func(r reply) {
		local = local || r.kind == unix.RTM_NEWROUTE && len(r.body) >= unix.SizeofRtMsg && r.body[kind] == unix.RTN_LOCAL
	})
	if refused := (*Error)(nil); errors.As(err, &refused) {
		return false, nil // none yet
	}
	return local, err
}
