package handoff

import (
	"fmt"
	"path"
	"slices"
)

// maxSignal is the last real-time signal number of Linux (signal(7)).
const maxSignal = 64

// AgentSetup is the supervisor's first message to the agent: how to furnish
// the namespaces. With Terminal, the controlling terminal's descriptor comes
// with it, and after that those that are passed on to the command.
type AgentSetup struct {
	// NetNS asks for a network namespace beside the agent's own: the absolute path
	// of a file that it is bound to. Empty: none.
	NetNS string `json:"netns,omitempty"`
	// ResolvConf and Hosts are files of the instance directory that are bound
	// over /etc/resolv.conf and /etc/hosts; empty leaves those as they are.
	ResolvConf string `json:"resolv_conf"`
	Hosts      string `json:"hosts"`
	// Propagation is one of Propagations.
	Propagation string `json:"propagation"`
	// CopyUp lists directories that become writable copies.
	CopyUp []string `json:"copy_up,omitempty"`
	// PIDNS says that the agent is pid 1 and mounts /proc.
	PIDNS bool `json:"pidns,omitempty"`
	// HostNet says that the agent's network namespace is the host's, which stays as
	// it is.
	HostNet bool `json:"host_net,omitempty"`
	// Loopback asks for the loopback interface of the new network namespace, the
	// agent's own or that of NetNS, to be brought up: nobody else will.
	Loopback bool `json:"loopback,omitempty"`
	// Reaper says that orphans are waited for, and not only the command.
	Reaper bool `json:"reaper,omitempty"`
	// Cgroup2 asks for the agent's cgroup namespace at /sys/fs/cgroup (version 2).
	Cgroup2 bool `json:"cgroup2,omitempty"`
	// Terminal says that a descriptor of the terminal comes along.
	Terminal bool `json:"terminal,omitempty"`
}

// Propagations are the ways in which mounts may propagate (mount_namespaces(7));
// those with an r mean the whole tree.
var Propagations = [...]string{"rprivate", "rslave", "rshared", "private", "slave", "shared"}

// AgentNetNS brings the descriptor of the network namespace that AgentSetup asked
// for, before the rest is furnished.
type AgentNetNS struct{}

// AgentReady answers AgentSetup. Notices are lines for the user, one degraded
// thing each.
type AgentReady struct {
	Notices []string `json:"notices,omitempty"`
}

// AgentFailed says that the agent could not do its work and ends. Code is the
// exit code for the user: 125, 126 or 127.
type AgentFailed struct {
	Code   int    `json:"code"`
	Reason string `json:"reason"`
}

// AgentStart asks the agent to start the command, as the terminal's foreground
// process group if Foreground is set.
type AgentStart struct {
	Foreground bool `json:"foreground,omitempty"`
}

// AgentStarted says that the command's execve succeeded. PID is the command's
// id as the agent sees it.
type AgentStarted struct {
	PID int `json:"pid"`
}

// AgentSignal asks the agent to send a signal to the command, or to its whole
// process group if Group is set, as a terminal does.
type AgentSignal struct {
	Signal int  `json:"signal"`
	Group  bool `json:"group,omitempty"`
}

// AgentStopped says that a signal stopped the command.
type AgentStopped struct {
	Signal int `json:"signal"`
}

// AgentContinue asks the agent to continue the command's process group, after
// making it the terminal's foreground group if Foreground is set.
type AgentContinue struct {
	Foreground bool `json:"foreground,omitempty"`
}

// AgentExited says how the command ended: by Signal if that is not zero, else
// with Code.
type AgentExited struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// AgentKill asks the agent to kill every process in its care and to end.
type AgentKill struct{}

func (*AgentSetup) kind() string    { return "agent.setup" }
func (*AgentNetNS) kind() string    { return "agent.netns" }
func (*AgentReady) kind() string    { return "agent.ready" }
func (*AgentFailed) kind() string   { return "agent.failed" }
func (*AgentStart) kind() string    { return "agent.start" }
func (*AgentStarted) kind() string  { return "agent.started" }
func (*AgentSignal) kind() string   { return "agent.signal" }
func (*AgentStopped) kind() string  { return "agent.stopped" }
func (*AgentContinue) kind() string { return "agent.continue" }
func (*AgentExited) kind() string   { return "agent.exited" }
func (*AgentKill) kind() string     { return "agent.kill" }

func (*AgentNetNS) check() error    { return nil }
func (*AgentReady) check() error    { return nil }
func (*AgentStart) check() error    { return nil }
func (*AgentContinue) check() error { return nil }
func (*AgentKill) check() error     { return nil }

func (m *AgentSetup) check() error {
	if !slices.Contains(Propagations[:], m.Propagation) {
		return fmt.Errorf("%w: propagation %.32q", ErrMalformed, m.Propagation)
	}
	if m.NetNS != "" && !path.IsAbs(m.NetNS) {
		return fmt.Errorf("%w: path %.32q of a network namespace is not absolute", ErrMalformed, m.NetNS)
	}
	return nil
}

func (m *AgentFailed) check() error {
	if m.Code < 1 || m.Code > 255 {
		return fmt.Errorf("%w: exit code %d", ErrMalformed, m.Code)
	}
	return nil
}

func (m *AgentStarted) check() error {
	if m.PID < 1 {
		return fmt.Errorf("%w: pid %d", ErrMalformed, m.PID)
	}
	return nil
}

func (m *AgentSignal) check() error  { return checkSignal(m.Signal) }
func (m *AgentStopped) check() error { return checkSignal(m.Signal) }

func (m *AgentExited) check() error {
	if m.Signal != 0 {
		return checkSignal(m.Signal)
	}
	if m.Code < 0 || m.Code > 255 {
		return fmt.Errorf("%w: exit code %d", ErrMalformed, m.Code)
	}
	return nil
}

func checkSignal(n int) error {
	if n < 1 || n > maxSignal {
		return fmt.Errorf("%w: signal %d", ErrMalformed, n)
	}
	return nil
}
