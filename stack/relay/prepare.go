package relay

import "golang.org/x/sys/unix"

// Preparation says which options a socket has already. Each is a system call, and a
// connection that is accepted gets those of its listener for nothing (tcp(7)).
type Preparation uint8

// The preparations.
const (
	// Unprepared is a socket of which nothing is known.
	Unprepared Preparation = iota
	// PreparedTCP and PreparedUnix are sockets that a listener accepted after
	// Prepare.
	PreparedTCP
	PreparedUnix
	// LocalTCP is a fresh TCP socket whose peer is on this machine: it cannot vanish
	// without its kernel telling, so there is no use in keepalive.
	LocalTCP
)

// Prepare sets what the relay wants of the sockets that a listener accepts from now
// on. It returns what to say of them.
func Prepare(listener int) Preparation {
	if Unprepared.complete(int32(listener)) {
		return PreparedTCP
	}
	return PreparedUnix
}

// PrepareLocal prepares a fresh TCP socket whose peer is on this machine, as LocalTCP
// would be, so that it is PreparedTCP.
func PrepareLocal(fd int) { LocalTCP.complete(int32(fd)) }

// complete sets the options that a socket lacks. It reports whether it is TCP.
//
// Until a direction has ended in order, closing resets: also when this process is
// killed, since an end of stream would pass for the whole. Nothing waits for more to
// be sent with it (Nagle), since the sender has decided that already. Urgent bytes
// stay in their place in the stream, where RFC 6093 section 4 wants receivers to
// have them; that they were urgent is not passed on.
func (p Preparation) complete(fd int32) (tcp bool) {
	switch p {
	case PreparedTCP:
		return true
	case PreparedUnix:
		return false
	}
	setLinger(fd, true)
	_ = setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	if setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) != 0 {
		return false
	}
	if p == LocalTCP {
		return true
	}
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepaliveIdle)
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepaliveInterval)
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepaliveCount)
	_ = setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	return true
}
