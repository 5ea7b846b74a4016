package rtnl

import (
	"os"

	"golang.org/x/sys/unix"
)

// Dump asks for every object of a kind, over any netlink socket: sock_diag speaks
// the same way. fixed is the request after struct nlmsghdr; each is called with the
// body of every message of the answer, which it must not keep. The kernel's refusal
// is an *Error.
func Dump(socket *os.File, op string, kind uint16, fixed []byte, each func(kind uint16, body []byte)) error {
	m := newMessage(kind, unix.NLM_F_DUMP, fixed)
	return exchange(socket, op, m, func(r reply) { each(r.kind, r.body) })
}

// Attributes calls each with type and value of every attribute in b, up to the first
// one that does not fit.
func Attributes(b []byte, each func(kind uint16, value []byte)) {
	for kind, value := range attributes(b) {
		each(kind, value)
	}
}
