package supervisor

import (
	"github.com/rootless-containers/rootlesskit/v3/pkg/api"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/netplan"
)

// A network that no engine serves: the host's own, or one with a loopback interface
// only, with published ports (lone.go) or without. Directory, control socket and
// everything about the command are as ever.

// served reports whether an engine serves the network.
func (n Net) served() bool { return n == "" || n == NetEngine }

// endpoint is what an instance says of its endpoint.
func (n Net) endpoint(kind handoff.EndpointKind) string {
	switch {
	case n.served():
		return string(kind)
	case n == netLone:
		return string(NetNone)
	}
	return string(n)
}

// prepare checks the configuration and turns off what cannot work.
func (c *RunConfig) prepare() error {
	if err := c.Check(); err != nil {
		return err
	}
	if c.Net.served() {
		return prepare(&c.Config)
	}
	if c.lone() {
		c.prepareLone()
		return nil
	}
	c.Plan = netplan.Plan{} // there are no addresses of ours
	c.PortDriver = PortDriverNone
	return nil
}

// unservedInfo is GET /v1/info in RootlessKit's way: it knows a driver "none", and
// of the host's network it says nothing.
func (s *status) unservedInfo() apisock.Info {
	info := apisock.Info{Info: api.Info{
		APIVersion: api.Version,
		Version:    s.cfg.Version,
		StateDir:   s.dir,
		ChildPID:   s.info.ChildPID,
	}}
	if s.kind != NetHost {
		info.NetworkDriver = &api.NetworkDriverInfo{Driver: string(NetNone)}
	}
	return info
}
