package portdriver

import "time"

// Bounds of everything that users, clients and containers can make grow.
const (
	// MaxRules is how many rules an instance may have, a range counting as one.
	MaxRules = 16384
	// MaxListeners is how many sockets all rules together may hold; the process's
	// limit of descriptors may be lower.
	MaxListeners = 32768
	// MaxTCP is how many published connections may exist. Each holds two
	// descriptors, so the process's limit of them is usually reached earlier.
	MaxTCP = 16000
	// MaxPending is how many connections may wait for the container's answer.
	MaxPending = 1024
	// MaxUDP is how many clients' UDP flows all listeners together may have. The
	// least recently used one gives way.
	MaxUDP = 8192
)

// Default times.
const (
	// ConnectTimeout ends a connection that the container has not answered. Its
	// kernel answers at once; only a full backlog makes it wait (tcp(7)).
	ConnectTimeout = 10 * time.Second
	// AcceptPause is how long accepting rests when descriptors or memory ran out
	// and nothing was freed earlier. A port serves again within a second.
	AcceptPause = 50 * time.Millisecond
	// UDPIdle ends a flow that had a reply, UDPIdleUnreplied one that never had;
	// the figures are those of flows in the other direction (RFC 4787 REQ-5).
	UDPIdle          = 120 * time.Second
	UDPIdleUnreplied = 30 * time.Second
)
