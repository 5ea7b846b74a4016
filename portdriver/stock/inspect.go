package stock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
)

// nature is what socket(2) was asked for.
type nature struct{ domain, typ, protocol int }

var natures = [handoff.NumSocketKinds]nature{
	handoff.SocketTCP4: {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	handoff.SocketTCP6: {unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	handoff.SocketUDP4: {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	handoff.SocketUDP6: {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},

	handoff.SocketExpressUDP4: {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	handoff.SocketExpressUDP6: {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
}

// errUnfit says that a descriptor is not what was ordered.
var errUnfit = errors.New("not a socket of the kind that was ordered")

// inspect makes sure that fd is a socket of a kind and does not block the thread that
// uses it. That it is fresh is found out by bind(2) and connect(2), which refuse
// another one: every call here is made for every connection.
func inspect(fd int, kind handoff.SocketKind) error {
	want := natures[kind]
	for _, o := range [...]struct{ name, want int }{{unix.SO_DOMAIN, want.domain}, {unix.SO_PROTOCOL, want.protocol}} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.name)
		if err != nil {
			return fmt.Errorf("inspect descriptor: %w", err)
		}
		if got != o.want {
			return errUnfit
		}
	}
	// The flags of a socket that can be set are O_NONBLOCK, O_ASYNC and two that mean
	// nothing to it, so there is none to be kept.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_RDWR|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("set O_NONBLOCK: %w", err)
	}
	return nil
}
