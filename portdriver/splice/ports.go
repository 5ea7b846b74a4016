package splice

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ports gives sockets the client's port without binding them to it by number.
//
// A socket that was bound to a port by number keeps that for ever. One that was bound
// to port 0 gets a port from the kernel and loses it with its connection, so it can be
// used again; with IP_LOCAL_PORT_RANGE (ip(7), Linux 6.3) it may choose from one port
// only. But the kernel heeds that only for ports that it hands out in this network
// namespace (net.ipv4.ip_local_port_range), and chooses any of those otherwise. It does
// not tell which they are, so they are learnt: an unknown port is assigned in bind(2)
// already, and looked at before anything is sent from it.
type ports struct {
	// set is setsockopt(2) of IP_LOCAL_PORT_RANGE, for tests that have it refuse.
	set func(fd int, only uint16) syscall.Errno

	mu    sync.Mutex // guards the fields below
	off   bool       // the kernel does not know the option
	known known
}

// known is what is known of the range of ports that the kernel hands out. It is an
// interval that holds low to high, if high is not 0, and neither under and what is
// below nor over and what is above.
type known struct{ low, high, under, over uint16 }

// verdict is whether a port is handed out.
type verdict uint8

const (
	portUnknown verdict = iota
	portIn
	portOut
)

func (k known) verdict(port uint16) verdict {
	switch {
	case k.low <= port && port <= k.high:
		return portIn
	case port <= k.under, k.over != 0 && port >= k.over:
		return portOut
	}
	return portUnknown
}

// with is what is known after a port was tried. An outside port while nothing is
// known to be inside could be on either side, so it teaches nothing.
func (k known) with(port uint16, in bool) known {
	switch {
	case in && k.high == 0:
		k.low, k.high = port, port
	case in:
		k.low, k.high = min(k.low, port), max(k.high, port)
	case k.high == 0:
	case port < k.low:
		k.under = max(k.under, port)
	case k.over == 0 || port < k.over:
		k.over = port
	}
	return k
}

func (p *ports) verdict(port uint16) verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off || port == 0 {
		return portOut
	}
	return p.known.verdict(port)
}

func (p *ports) learn(port uint16, in bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = p.known.with(port, in)
}

// forget starts anew: someone has changed the setting.
func (p *ports) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = known{}
}

// only has a socket choose from one port, 0: from all.
func (p *ports) only(fd int, port uint16) bool {
	errno := p.set(fd, port)
	if errno == unix.ENOPROTOOPT {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.off = true
	}
	return errno == 0
}

// on reports whether the kernel knows the option, as far as was seen.
func (p *ports) on() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.off
}
