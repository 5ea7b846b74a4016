// Package slirpcli reads the command line of slirp4netns(1) and says what it means
// for postern.
//
// Nothing here opens, prints or ends anything: Parse turns words into Options,
// Options.Attach turns those into a supervisor's configuration, Help, Version and
// Banner are texts. The caller acts.
//
// # The command line
//
//	slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
//	slirp4netns [OPTION]... --target-type=bess SOCKETPATH
//
// Words are taken as getopt_long(3) takes them, because callers were written
// against that: options and operands in any order, "--opt=value" and "--opt
// value", long options abbreviated as far as they stay unambiguous, short ones
// bundled, "--" before operands that begin with a dash, and of an option that is
// repeated the last. Options are looked at in their order: a --help before a
// mistake helps, one behind it comes too late.
//
// # Mistakes
//
// Every mistake ends the program with exit code 1 and a line on standard error.
// With some of them the original also prints its usage, on standard output; those
// are UsageErrors here. Missing operands have the usage and no line at all.
//
// # What it means here
//
// The address plan is that of the original, and postern's: gateway N+2, name server
// N+3, DHCP pool N+15 to N+30, container N+100. The gateway reaches the host's
// loopback unless that is disabled, which is the original's default and the opposite
// of postern's. --enable-sandbox and --enable-seccomp are accepted and change
// nothing: the process that moves packets is always confined, and more narrowly.
//
// With --target-type=bess a virtual machine takes the place of a namespace (User Mode
// Linux: vec0:transport=bess,dst=SOCKETPATH). It connects to the socket and configures
// itself; its hardware address is the one that it sends from, or that of --macaddress,
// which the original does not have here. The machine must not send frames of more than
// --mtu and an Ethernet header. Of the socket's place more is asked than by the
// original, which removes whatever is there: only a socket without a listener gives way.
package slirpcli

import "net/netip"

// NetNSType is the kind of thing that the first operand is.
type NetNSType string

// The kinds of --netns-type.
const (
	// TypePID is a process, whose namespaces are served.
	TypePID NetNSType = "pid"
	// TypePath is the file of a network namespace.
	TypePath NetNSType = "path"
	// TypeTAPFD is the number of a descriptor that is a TAP device.
	TypeTAPFD NetNSType = "tapfd"
)

// Action is what a command line asks for.
type Action int

// The actions.
const (
	// Serve is to give a network.
	Serve Action = iota
	// ShowHelp is to print Help on standard output.
	ShowHelp
	// ShowVersion is to print Version on standard output.
	ShowVersion
)

// noFD is the value of a descriptor that was not given.
const noFD = -1

// Options are what a command line says.
type Options struct {
	Action Action
	// Configure gives the interface its addresses and routes.
	Configure bool
	// ExitFD and ReadyFD are descriptors, -1 if not given.
	ExitFD, ReadyFD int
	// MTU in bytes, as asked for.
	MTU int
	// IPv6 adds the network fd00::/64.
	IPv6 bool
	// APISocket is a path, "" for none.
	APISocket string
	// CIDR is the IPv4 network.
	CIDR netip.Prefix
	// DisableHostLoopback keeps the gateway from reaching the host's loopback.
	DisableHostLoopback bool
	// NetNSType is what PID, Path or TAPFD was given; "" with Bess.
	NetNSType NetNSType
	// Bess listens on the unix socket Path for a virtual machine.
	Bess bool
	// UserNSPath is the user namespace to enter first, "" for the obvious one.
	UserNSPath string
	// Sandbox and Seccomp are accepted.
	Sandbox, Seccomp bool
	// Outbound4 and Outbound6 are an address or an interface, "" for neither.
	Outbound4, Outbound6 string
	// DisableDNS leaves out the name server.
	DisableDNS bool
	// MAC is the interface's hardware address, or the virtual machine's; zero if not
	// given.
	MAC [6]byte

	// PID, Path or TAPFD is the target, by NetNSType and Bess.
	PID   int
	Path  string
	TAPFD int
	// TAPName is the interface's name, "" with Bess, and with TypeTAPFD unless given.
	TAPName string
	// Extra are operands that mean nothing.
	Extra []string
}

// UsageError is a mistake that is answered with the usage too. Err is nil where
// that is all there is to say.
type UsageError struct{ Err error }

// Error returns the mistake.
func (e *UsageError) Error() string {
	if e.Err == nil {
		return "operands are missing"
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *UsageError) Unwrap() error { return e.Err }
