package icmp

// Kind is the reason that an error message gives, the same list for both families.
type Kind uint8

// The kinds. The zero value is none of them, so that a forgotten assignment
// sends nothing.
const (
	// NetUnreachable: no route (IPv4 3/0; IPv6 1/0).
	NetUnreachable Kind = iota + 1
	// HostUnreachable: the last hop found nobody (IPv4 3/1; IPv6 1/3).
	HostUnreachable
	// PortUnreachable: nobody listens (IPv4 3/3; IPv6 1/4).
	PortUnreachable
	// AdminProhibited: policy refuses (IPv4 3/13, RFC 1812; IPv6 1/1).
	AdminProhibited
	// FragmentationNeeded: too big for the next hop, whose MTU the message
	// carries (IPv4 3/4, RFC 1191; IPv6 2/0, packet too big).
	FragmentationNeeded
	// TimeExceeded: the hop limit ran out (IPv4 11/0; IPv6 3/0).
	TimeExceeded
)

// code is a message's type and code.
type code struct{ typ, code uint8 }

type row struct {
	name   string
	v4, v6 code
}

var kinds = [...]row{
	NetUnreachable:      {"net unreachable", code{3, 0}, code{1, 0}},
	HostUnreachable:     {"host unreachable", code{3, 1}, code{1, 3}},
	PortUnreachable:     {"port unreachable", code{3, 3}, code{1, 4}},
	AdminProhibited:     {"administratively prohibited", code{3, 13}, code{1, 1}},
	FragmentationNeeded: {"fragmentation needed", code{3, 4}, code{2, 0}},
	TimeExceeded:        {"time exceeded", code{11, 0}, code{3, 0}},
}

// String returns the kind in words.
func (k Kind) String() string {
	if !k.valid() {
		return "none"
	}
	return kinds[k].name
}

func (k Kind) valid() bool { return k >= NetUnreachable && int(k) < len(kinds) }

// Wire returns the kind's type and code. Both are 0 for a value that is no Kind.
func (k Kind) Wire(v6 bool) (typ, code uint8) {
	if !k.valid() {
		return 0, 0
	}
	c := kinds[k].v4
	if v6 {
		c = kinds[k].v6
	}
	return c.typ, c.code
}

// KindOf returns the kind of a received type and code, as a socket's error
// queue reports them (ip(7), IP_RECVERR). A code that has no Kind of its own
// becomes the nearest one of its type: an unknown host is unreachable, a network
// prohibited by policy is prohibited. ok is false for other types.
func KindOf(v6 bool, typ, code uint8) (k Kind, ok bool) {
	if v6 {
		return kindOf6(typ, code)
	}
	return kindOf4(typ, code)
}

func kindOf4(typ, code uint8) (Kind, bool) {
	switch typ {
	case 3:
		switch code {
		case 0, 5, 6, 11: // source route failed, net unknown, net unreachable for TOS
			return NetUnreachable, true
		case 3, 2: // protocol unreachable: the service is not there either
			return PortUnreachable, true
		case 4:
			return FragmentationNeeded, true
		case 9, 10, 13, 14, 15: // prohibited and precedence codes (RFC 1812 5.2.7.1)
			return AdminProhibited, true
		}
		return HostUnreachable, true
	case 11:
		return TimeExceeded, code == 0
	}
	return 0, false
}

func kindOf6(typ, code uint8) (Kind, bool) {
	switch typ {
	case 1:
		switch code {
		case 0:
			return NetUnreachable, true
		case 4:
			return PortUnreachable, true
		case 1, 5, 6: // prohibited, source address policy, reject route (RFC 4443 3.1)
			return AdminProhibited, true
		}
		return HostUnreachable, true
	case 2:
		return FragmentationNeeded, true
	case 3:
		return TimeExceeded, code == 0
	}
	return 0, false
}
