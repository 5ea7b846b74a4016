// Package supervisor is the process that the user started.
//
// It owns everything that must outlive an engine: the endpoint's descriptor, the
// instance's directory and lock, the control socket, the terminal, and the
// decision when all is over. It moves no packet and makes no socket inside the
// container.
//
// Run makes new namespaces with an agent in them; Attach serves namespaces that
// others made. Both then do the same, in this order, with as much at the same
// time as possible: the engine process starts while the namespaces are made, and
// the agent furnishes its mounts while the endpoint is fetched and configured.
//
//	supervisor            engine                 agent
//	start ───────────────▶ confine
//	make namespaces ─────────────────────────────▶ furnish mounts
//	fetch endpoint, configure addresses            │
//	config + endpoint ───▶ packets flow            │
//	      ◀─────────────── ready                   │
//	      ◀─────────────────────────────────────── ready
//	start ───────────────────────────────────────▶ command
//
// With DetachNetNS the network namespace is not the agent's: the agent makes one
// beside its own, the host's, and sends it before it furnishes; the endpoint is
// fetched when it has come.
//
// With NetNone and NetHost there is no engine, no endpoint and no port driver: the
// command starts when the agent is ready (unserved.go). NetNone with
// PortDriverSplice has an engine for published ports, whose endpoint leads nowhere
// (lone.go).
//
// Descriptors that are passed through go to the agent with its orders and become the
// command's from 3 on (passed.go); nobody keeps a copy.
//
// A TAP that a caller hands over takes the place of namespaces: nothing can be made or
// changed in there then, so there are neither the express path nor sockets of the
// container, published ports go through netstack, and the end of the TAP is the
// instance's (tapfd.go). So it is with a virtual machine that connects to a socket of
// ours; until it does there is an engine that waits for its configuration (guest.go).
//
// After that one goroutine, locked to the main thread, waits for events in a
// select and acts on them; other goroutines only turn blocking calls into events
// or serve the control socket from guarded fields. The main thread matters twice:
// parent-death signals follow the thread that forked, and a stop signal that the
// process sends itself takes effect before kill(2) returns only on the thread
// that the kernel prefers, the main one.
//
// An engine that dies is replaced at once with the same endpoint; flows through
// it are reset, the interface stays. Five deaths in a short time end the instance
// (restart.go). An endpoint that dies (the container's root deleted the
// interface) is made anew, with growing pauses, for as long as it takes.
package supervisor

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/activation"
	"github.com/postern-net/postern/portdriver/auto"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/userns/spawn"
)

// Exit codes beside the command's own.
const (
	ExitOK     = 0
	ExitFailed = 125
	// exitSignal is added to the number of the signal that ended a command.
	exitSignal = 128
)

// Endpoint is the user's choice of endpoint.
type Endpoint string

// The choices.
const (
	// EndpointAuto is a TAP, or a packet socket where there is no TAP to be had.
	EndpointAuto   Endpoint = "auto"
	EndpointTAP    Endpoint = "tap"
	EndpointPacket Endpoint = "packet"
)

// Config is what an instance shall be like.
type Config struct {
	// Name of the instance, "" for a generated one.
	Name string
	// StateDir is the instance's directory itself, "" for one below the user's
	// runtime directory.
	StateDir string
	// RuntimeDir is XDG_RUNTIME_DIR's value.
	RuntimeDir string
	// Version is postern's, for the control socket.
	Version string

	Plan     netplan.Plan
	MTU      int
	IfName   string
	Endpoint Endpoint
	// Configure gives the interface its addresses and routes; without it, only
	// the link is brought up. A persistent TAP by the name IfName is attached to, and
	// outlives the instance; without Configure its MTU is left alone too.
	Configure bool
	// MAC is the hardware address of the container's interface, the kernel's choice if
	// it is zero.
	MAC [6]byte
	// DHCPFirst and DHCPLast are what the DHCP server gives to clients, by hardware
	// address, 64 at most; without them, the interface gets the container's address.
	DHCPFirst, DHCPLast netip.Addr
	// NoDNS leaves the container without our name server.
	NoDNS bool
	// Slirp4netnsSocket is the path of a control socket as slirp4netns has it, "" for none.
	Slirp4netnsSocket string

	// TCP is how TCP leaves the container; datagrams that keep going follow it.
	TCP TCPPath

	HostLoopback         bool
	HostLoopbackPorts    []uint16
	Outbound4, Outbound6 netip.Addr
	// DNS and DNSSearch replace the host's name servers and search list if not empty.
	DNS                       []netip.Addr
	DNSSearch                 []string
	UDPIdle, UDPIdleUnreplied time.Duration

	// Publish are the ports to publish, PublishAuto follows what the container
	// listens on, but for AutoExcept. Inherited are the listeners that came with
	// the process (sd_listen_fds(3)); rules may name them.
	Publish     []portdriver.Spec
	PublishAuto bool
	AutoExcept  auto.Exclusions
	PortDriver  PortDriver
	Inherited   []activation.Inherited
	// RootlessKit is what differs for commands and clients that expect RootlessKit.
	RootlessKit RootlessKit

	LogLevel slog.Level
	LogJSON  bool
	// ReadyFD gets "1" when the network works, then it is closed. The end of
	// ExitFD's other side ends the instance. Both may be nil.
	ReadyFD, ExitFD *os.File
	// Stdin, Stdout and Stderr are the command's. Stderr also takes our lines.
	Stdin, Stdout, Stderr *os.File
}

// RunConfig is what Run needs besides.
type RunConfig struct {
	Config
	// Command is the command and its arguments; at least one word.
	Command []string
	// Env is its environment.
	Env []string
	// Map says which ids the user namespace has.
	Map spawn.Mode
	// CopyUp and Propagation furnish the mount namespace. Propagation is one of
	// handoff.Propagations.
	CopyUp      []string
	Propagation string
	// DetachNetNS leaves the command in the host's network namespace; the
	// instance's is bound to the file netns of its directory, for the command to
	// enter. The command's resolv.conf and hosts are the host's then.
	DetachNetNS bool
	// The namespaces to make besides user, network and mount.
	PIDNS, IPCNS, UTSNS, CgroupNS bool
	// Net is what the command's network is; "" is NetEngine.
	Net Net
	// Reaper has orphans below the command waited for in a PID namespace, which is
	// the only place where nobody else would: without it they stay zombies until
	// the command ends. It needs PIDNS.
	Reaper bool
	// EvacuateCgroup2 is the cgroup below the container's root cgroup that its
	// processes are moved to, so that controllers can be delegated; "" for none. It
	// needs PIDNS and CgroupNS (evacuate.go).
	EvacuateCgroup2 string
	// Passed are descriptors for the command beside its standard streams.
	Passed Passed
	// Subids is where subordinate ids are looked up; "" is SubidAuto.
	Subids SubidSource
}

// SubidSource is where subordinate ids are looked up.
type SubidSource string

// The sources of subordinate ids.
const (
	// SubidAuto is what nsswitch.conf(5) says: getsubids(1) or the files.
	SubidAuto SubidSource = "auto"
	// SubidDynamic is getsubids(1), SubidStatic are subuid(5) and subgid(5).
	SubidDynamic SubidSource = "dynamic"
	SubidStatic  SubidSource = "static"
)

// Net is what network a command gets.
type Net string

// The kinds of network.
const (
	// NetEngine is a new network namespace that an engine serves.
	NetEngine Net = "engine"
	// NetNone is a new network namespace with a loopback interface only. With
	// PortDriverSplice, ports can be published to servers on it.
	NetNone Net = "none"
	// NetHost is the network namespace that postern was started in.
	NetHost Net = "host"
)

// AttachConfig is what Attach needs besides: PID, or NetNS and perhaps UserNS, or
// all three with Life, or TAP, or Guest.
type AttachConfig struct {
	Config
	PID           int
	NetNS, UserNS string
	// TAP is an open TAP device to serve in place of namespaces that can be entered.
	// Attach takes it over.
	TAP *os.File
	// Guest is where a virtual machine connects that is served in place of namespaces.
	// Config.MAC is its hardware address then; zero: the one that it sends from. Attach
	// closes it.
	Guest *GuestSocket
	// Life is a pidfd of the process PID, for namespaces that are reached by NetNS
	// and UserNS although they have a process; its end ends the instance. It stays
	// the caller's.
	Life *os.File
	// Command is what the instance says it is for; nil: what is attached to.
	Command []string
}

// notify writes a line for the user.
func notify(w io.Writer, line string) {
	_, _ = io.WriteString(w, "postern: "+line+"\n") // nobody to tell if it fails
}
