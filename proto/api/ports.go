package api

import (
	"fmt"
	"net/netip"
)

// Bounds of what a client may send.
const (
	// MaxSpecs is how many specs one AddPorts may bring.
	MaxSpecs = 4096
	// MaxAddPorts is the longest AddPorts, bytes: room for MaxSpecs of them with two
	// IPv6 addresses each.
	MaxAddPorts = 1 << 20
	// MaxRootlessKit is the longest request of RootlessKit's clients, bytes. Theirs
	// have about 100.
	MaxRootlessKit = 64 << 10
)

// Port is a rule in force: a published port, a range of ports or a unix socket.
type Port struct {
	ID int `json:"id"`
	// Spec is the rule's text form, in which the same rule could be asked for again.
	Spec string `json:"spec"`
	// Proto is tcp, tcp4, tcp6, udp, udp4 or udp6.
	Proto string `json:"proto"`
	// Count is how many ports in a row the rule has.
	Count int `json:"count"`
	// Bound are the addresses of the listening sockets, with the ports that they
	// really have. They are the host's, with Reverse the container's.
	Bound []netip.AddrPort `json:"bound"`
	// HostPath is the host's unix socket, if that is the host's side.
	HostPath string `json:"hostPath,omitempty"`
	// ContainerAddr is left out if the container's own address of the client's
	// family is meant. ContainerPort is the first one of Count.
	ContainerAddr netip.Addr `json:"containerAddr,omitzero"`
	ContainerPort uint16     `json:"containerPort,omitempty"`
	// ContainerPath is a unix socket in the container instead.
	ContainerPath string `json:"containerPath,omitempty"`
	// Auto says that the rule follows a listener of the container (--publish-auto).
	Auto bool `json:"auto,omitempty"`
	// Reverse says that the container's processes are the clients.
	Reverse bool `json:"reverse,omitempty"`
	// Proxy is the version of the PROXY protocol header that the server gets, 0 for
	// none.
	Proxy int `json:"proxy,omitempty"`
}

// AddPorts asks for rules: either Spec or Specs is given. All of them are put in
// force or none.
type AddPorts struct {
	Spec  string   `json:"spec,omitempty"`
	Specs []string `json:"specs,omitempty"`
}

// All returns the specs asked for. The error says what is wrong with the request
// and wraps ErrMalformed.
func (a AddPorts) All() ([]string, error) {
	switch n := len(a.Specs); {
	case a.Spec != "" && n > 0:
		return nil, fmt.Errorf("%w: both spec and specs", ErrMalformed)
	case a.Spec != "":
		return []string{a.Spec}, nil
	case n == 0:
		return nil, fmt.Errorf(`%w: no spec (want {"specs":["8080:80/tcp"]})`, ErrMalformed)
	case n > MaxSpecs:
		return nil, fmt.Errorf("%w: %d specs, at most %d in one request", ErrMalformed, n, MaxSpecs)
	}
	return a.Specs, nil
}

// Error is the body of every answer that is not a success, RootlessKit's form.
type Error struct {
	Message string `json:"message"`
}
