package portdriver

import "net/netip"

// Proto is the transport of a rule, in RootlessKit's words: without a digit both
// IP families are meant.
type Proto string

// The protocols.
const (
	TCP  Proto = "tcp"
	TCP4 Proto = "tcp4"
	TCP6 Proto = "tcp6"
	UDP  Proto = "udp"
	UDP4 Proto = "udp4"
	UDP6 Proto = "udp6"
)

// Protos lists every protocol, in the order in which RootlessKit lists its own.
var Protos = []Proto{TCP, TCP4, TCP6, UDP, UDP4, UDP6}

// Spec is one rule as asked for. ParseSpec has the text form.
type Spec struct {
	// Proto is about the side where clients come; TCP if one side is a path, unless
	// that is Host with Reverse.
	Proto Proto
	// Host is where clients come to, Container where they are taken. With Reverse
	// the container's processes are the clients: they come to Container and are
	// taken to Host, which then is a unix socket.
	Host, Container Side
	// Count is how many ports in a row the rule has, at least 1.
	Count int
	// Proxy is the version of the PROXY protocol header that the container's
	// server gets in front of each connection; 0 for none.
	Proxy   int
	Reverse bool
}

// Side is one end of a rule: an address and port, or a path.
type Side struct {
	// Addr is the zero Addr if none was given. That means where clients come
	// 127.0.0.1 and ::1, and where they are taken the container's address of the
	// client's family, or the other family's when nothing listens there.
	Addr netip.Addr
	// Port is the first port. 0 on the host's side: any free one.
	Port uint16
	// Path is a unix socket's path instead of Addr and Port.
	Path string
	// FD names a listener that was inherited (LISTEN_FDNAMES, sd_listen_fds(3)), or
	// its number from 0, instead of Addr and Port; the host's side only.
	FD string
}
