package rtnl

import (
	"errors"
	"iter"
	"net"

	"golang.org/x/sys/unix"
)

// errMalformed is about an answer that does not follow netlink's layout.
var errMalformed = errors.New("malformed netlink answer")

// reply is one message of an answer.
type reply struct {
	kind  uint16
	flags uint16
	seq   uint32
	body  []byte
}

// splitReplies cuts a datagram into its messages.
func splitReplies(b []byte) ([]reply, error) {
	var list []reply
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return nil, errMalformed
		}
		n := int64(host.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > int64(len(b)) {
			return nil, errMalformed
		}
		list = append(list, reply{
			kind: host.Uint16(b[4:]), flags: host.Uint16(b[6:]), seq: host.Uint32(b[8:]),
			body: b[unix.NLMSG_HDRLEN:n],
		})
		b = b[min(align(int(n)), len(b)):]
	}
	return list, nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// attributes walks over the attributes in b: type without flag bits, and value. It
// ends at the first one that does not fit.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(host.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(host.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// ackError reads an NLMSG_ERROR message: the errno, 0 for success, and the
// kernel's explanation if it gave one.
func ackError(r reply) (errno unix.Errno, text string, err error) {
	if len(r.body) < 4+unix.NLMSG_HDRLEN {
		return 0, "", errMalformed
	}
	code := -int32(host.Uint32(r.body))
	if code < 0 {
		return 0, "", errMalformed
	}
	if r.flags&unix.NLM_F_ACK_TLVS == 0 {
		return unix.Errno(code), "", nil
	}
	rest := r.body[4+unix.NLMSG_HDRLEN:]
	if r.flags&unix.NLM_F_CAPPED == 0 {
		// The whole request is quoted before the attributes.
		quoted := int64(host.Uint32(r.body[4:])) - unix.NLMSG_HDRLEN
		if quoted < 0 || quoted > int64(len(rest)) {
			return unix.Errno(code), "", nil
		}
		rest = rest[min(align(int(quoted)), len(rest)):]
	}
	for kind, value := range attributes(rest) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			text = cString(value)
		}
	}
	return unix.Errno(code), text, nil
}

// cString is b up to its first zero byte.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// link is what an RTM_NEWLINK message says of an interface.
type link struct {
	index int
	name  string
	mtu   int
	flags uint32
	mac   net.HardwareAddr
}

// parseLink reads the body of an RTM_NEWLINK message.
func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, errMalformed
	}
	l := link{index: int(int32(host.Uint32(b[4:]))), flags: host.Uint32(b[8:])}
	for kind, value := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch {
		case kind == unix.IFLA_IFNAME:
			l.name = cString(value)
		case kind == unix.IFLA_MTU && len(value) >= 4:
			l.mtu = int(host.Uint32(value))
		case kind == unix.IFLA_ADDRESS:
			l.mac = append(net.HardwareAddr(nil), value...)
		}
	}
	return l, nil
}
