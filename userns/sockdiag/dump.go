package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// MaxSockets is how many sockets a Dump returns. A container can open as many as it
// has addresses and ports; no more than some hundred are sensibly published.
const MaxSockets = 4096

// Socket is one socket that waits for clients.
type Socket struct {
	// UDP says that it is a bound UDP socket without a peer; otherwise it is a
	// listening TCP socket.
	UDP bool
	// Bound is its own address, which may be the unspecified one. An IPv6 socket
	// bound to an IPv4 address has that.
	Bound netip.AddrPort
	// Dual says that it is an IPv6 socket on the unspecified address that takes
	// IPv4 clients too.
	Dual bool
	// Device is the index of the interface that it is bound to (SO_BINDTODEVICE, or
	// the zone of a link-local address), 0 for none.
	Device uint32
	// Mark is its SO_MARK, 0 if we may not see it.
	Mark uint32
}

// query is one dump: a family, a protocol and the states that are wanted.
type query struct {
	family, protocol uint8
	states           uint32
}

// The states (include/net/tcp_states.h). A UDP socket without a peer is closed.
const (
	stateClose  = 7
	stateListen = 10
)

var queries = []query{
	{unix.AF_INET, unix.IPPROTO_TCP, 1 << stateListen},
	{unix.AF_INET6, unix.IPPROTO_TCP, 1 << stateListen},
	{unix.AF_INET, unix.IPPROTO_UDP, 1 << stateClose},
	{unix.AF_INET6, unix.IPPROTO_UDP, 1 << stateClose},
}

// sockDiagByFamily is SOCK_DIAG_BY_FAMILY (linux/sock_diag.h).
const sockDiagByFamily = 20

// Dump returns the sockets of diag's network namespace that wait for clients, each
// address once, in the order of addresses, and how many more there are than
// MaxSockets. A kernel without IPv6 or without one of the protocols' sock_diag has
// none of those; without any, the error is ENOENT.
//
// diag is a netlink socket of NETLINK_SOCK_DIAG that nobody else uses meanwhile.
func Dump(diag *os.File) (sockets []Socket, more int, err error) {
	failed := 0
	for _, q := range queries {
		qerr := rtnl.Dump(diag, "list the container's sockets", sockDiagByFamily, q.request(), func(kind uint16, body []byte) {
			s, ok := parse(q, kind, body)
			switch {
			case !ok:
			case len(sockets) == MaxSockets:
				more++
			default:
				sockets = append(sockets, s)
			}
		})
		switch {
		case qerr == nil:
		case errors.Is(qerr, unix.ENOENT), errors.Is(qerr, unix.EAFNOSUPPORT):
			if failed++; failed == len(queries) {
				return nil, 0, qerr
			}
		default:
			return nil, 0, qerr
		}
	}
	slices.SortFunc(sockets, compare)
	return slices.Compact(sockets), more, nil
}

// compare orders sockets by everything that is told of them.
func compare(a, b Socket) int {
	if c := a.Bound.Compare(b.Bound); c != 0 {
		return c
	}
	rank := func(s Socket) uint64 {
		r := uint64(s.Device)
		if s.UDP {
			r |= 1 << 33
		}
		if s.Dual {
			r |= 1 << 32
		}
		return r
	}
	switch x, y := rank(a), rank(b); {
	case x != y && x < y, x == y && a.Mark < b.Mark:
		return -1
	case x != y, a.Mark != b.Mark:
		return 1
	}
	return 0
}

// request is struct inet_diag_req_v2 without an address: all sockets.
func (q query) request() []byte {
	b := make([]byte, reqLen)
	b[0], b[1] = q.family, q.protocol
	binary.NativeEndian.PutUint32(b[4:], q.states)
	return b
}
