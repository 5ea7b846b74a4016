package flow

import "time"

// Bounds of everything that a container or a remote can make grow. A refusal
// always has a counter (see Counters).
const (
	// MaxTCP is how many TCP flows may exist, pending dials included. Each
	// holds one host descriptor, on the express path one more; 16,000 of one fit
	// the common hard limit of 20,000.
	MaxTCP = 16000

	// MaxTCPIn is how many connections into the container may exist, those that it
	// has not answered yet included; portdriver's own limit is the same.
	MaxTCPIn = 16000

	// MaxPendingTCP is how many dials may be under way at once. It is the
	// figure tailscale arrived at on Linux (8,192), halved because each pending
	// dial holds a descriptor here.
	MaxPendingTCP = 4096

	// MaxPendingPerDestination is how many of them may go to one address and
	// port, so that a destination that swallows SYNs leaves room for the others.
	// A browser opens 6, a load generator some hundreds.
	MaxPendingPerDestination = 512

	// MaxUDP is how many container-side ports may be mapped at once, each with
	// one host descriptor. The least recently used mapping gives way.
	MaxUDP = 1024

	// MaxUDPRemotes is how many remote addresses one mapping remembers as
	// having been sent to (RFC 4787 REQ-8, address-dependent filtering).
	MaxUDPRemotes = 1024

	// MaxEcho is how many echo identifiers may be in use towards the outside.
	MaxEcho = 64

	// MaxDNS is how many DNS queries may be under way at once, apart from all
	// other limits, so that name service survives a flood of other datagrams.
	MaxDNS = 512

	// MaxDNSConns is how many TCP connections to the name service may be open.
	MaxDNSConns = 128
)

// Default times.
const (
	// UDPIdle ends a mapping that had a reply (RFC 4787 REQ-5: at least 2 minutes).
	UDPIdle = 120 * time.Second

	// UDPIdleUnreplied ends a mapping that never had one; the figure is that of
	// Linux conntrack (nf_conntrack_udp_timeout).
	UDPIdleUnreplied = 30 * time.Second

	// EchoIdle ends an echo identifier (RFC 5508 REQ-2: at least 60 s).
	EchoIdle = 60 * time.Second

	// DialTimeout ends a dial; Linux itself gives up after 127 s with the
	// default of six SYN retries (tcp(7), tcp_syn_retries).
	DialTimeout = 130 * time.Second
)
