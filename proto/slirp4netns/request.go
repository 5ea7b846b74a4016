package slirp4netns

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
)

// MaxRequest is the longest request in bytes; slirp4netns has a buffer of 4096 and
// refuses what fills it.
const MaxRequest = 4095

// The values of "proto".
const (
	TCP = "tcp"
	UDP = "udp"
)

// Request is an AddHostFwd, ListHostFwd or RemoveHostFwd.
type Request interface{ request() }

// AddHostFwd asks to publish a port.
type AddHostFwd struct {
	// Proto is TCP or UDP.
	Proto string
	// HostAddr is the IPv4 address to listen on; 0.0.0.0 if the client named none.
	HostAddr netip.Addr
	// GuestAddr is where clients are taken; the zero Addr if the client named none,
	// which means the recommended address of the network (N+100). 0.0.0.0 is what a
	// client really wrote, and libslirp's word for its first DHCP address.
	GuestAddr netip.Addr
	// HostPort and GuestPort are never 0.
	HostPort, GuestPort uint16
}

// ListHostFwd asks what was published by AddHostFwd.
type ListHostFwd struct{}

// RemoveHostFwd asks to end what AddHostFwd began.
type RemoveHostFwd struct {
	// ID is the one that the answer to AddHostFwd had, at least 1.
	ID int
}

func (AddHostFwd) request()    {}
func (ListHostFwd) request()   {}
func (RemoveHostFwd) request() {}

// Decode reads a request. The error is a Refusal, or ErrIncomplete; either is what
// AppendError answers.
func Decode(b []byte) (Request, error) {
	if len(b) > MaxRequest {
		return nil, ErrTooLarge
	}
	b, _, ended := bytes.Cut(b, []byte{0})
	top, err := parse(b)
	if ended && errors.Is(err, ErrIncomplete) {
		err = ErrJSON // nothing that may come still counts
	}
	if err != nil {
		return nil, err
	}
	o, ok := top.(object)
	if !ok {
		return nil, ErrObject
	}
	execute, ok := o.text("execute")
	if !ok {
		return nil, ErrNoExecute
	}
	arguments, _ := o["arguments"].(object) // a nil object has no members
	switch execute {
	case "add_hostfwd":
		return decodeAdd(arguments)
	case "list_hostfwd":
		return ListHostFwd{}, nil
	case "remove_hostfwd":
		id, ok := arguments.number("id", math.MaxInt32)
		if !ok {
			return nil, ErrRemoveID
		}
		return RemoveHostFwd{ID: id}, nil
	}
	return nil, ErrExecute
}

// decodeAdd looks at the arguments in the order in which slirp4netns does: a client
// with several mistakes is told the first.
func decodeAdd(arguments object) (Request, error) {
	var add AddHostFwd
	var ok bool
	if add.Proto, ok = arguments.text("proto"); !ok || add.Proto != TCP && add.Proto != UDP {
		return nil, ErrAddProto
	}
	if add.HostAddr, ok = arguments.addr("host_addr", netip.IPv4Unspecified()); !ok {
		return nil, ErrAddHostAddr
	}
	if add.HostPort, ok = arguments.port("host_port"); !ok {
		return nil, ErrAddHostPort
	}
	if add.GuestAddr, ok = arguments.addr("guest_addr", netip.Addr{}); !ok {
		return nil, ErrAddGuestAddr
	}
	if add.GuestPort, ok = arguments.port("guest_port"); !ok {
		return nil, ErrAddGuestPort
	}
	return add, nil
}

// text returns a member that is a string.
func (o object) text(name string) (string, bool) {
	s, ok := o[name].(string)
	return s, ok
}

// number returns a member that is a number from 1 to limit, without its fraction.
func (o object) number(name string, limit float64) (int, bool) {
	f, ok := o[name].(float64)
	if f = math.Trunc(f); !ok || f < 1 || f > limit {
		return 0, false
	}
	return int(f), true
}

// port returns a member that is a port.
func (o object) port(name string) (uint16, bool) {
	n, ok := o.number(name, math.MaxUint16)
	return uint16(n), ok
}

// addr returns a member that is an IPv4 address in the only form of inet_pton(3), or
// absent where there is none.
func (o object) addr(name string, absent netip.Addr) (netip.Addr, bool) {
	s, _ := o.text(name)
	if s == "" {
		return absent, true
	}
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Is4()
}
