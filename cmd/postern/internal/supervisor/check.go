package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-net/postern/proto/handoff"
)

// Check refuses combinations that cannot be meant. Its errors name flags of run.
func (c *RunConfig) Check() error {
	for _, check := range []func() error{c.CheckPorts, c.checkNet, c.checkMounts, c.checkProcesses, c.checkSubids} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *RunConfig) checkNet() error {
	asked := len(c.Publish) > 0 || c.PublishAuto || c.Slirp4netnsSocket != ""
	switch c.Net {
	case "", NetEngine:
		return nil
	case NetNone:
		if asked && (!c.lone() || c.PublishAuto || c.Slirp4netnsSocket != "") {
			return errors.New("publish ports: with --net=none no engine serves the network; use --net=engine")
		}
	case NetHost:
		if asked {
			return errors.New("publish ports: with --net=host the command's ports are the host's; leave --publish out, or use --net=engine")
		}
	default:
		return fmt.Errorf("--net %q: want engine, none or host", c.Net)
	}
	return nil
}

func (c *RunConfig) checkMounts() error {
	if !slices.Contains(handoff.Propagations[:], c.Propagation) {
		return fmt.Errorf("--propagation %q: want one of %s", c.Propagation, strings.Join(handoff.Propagations[:], ", "))
	}
	return nil
}

func (c *RunConfig) checkProcesses() error {
	switch evac := c.EvacuateCgroup2; {
	case c.Reaper && !c.PIDNS:
		return errors.New("--reaper=true needs --pidns")
	case evac == "":
		return nil
	case !c.PIDNS || !c.CgroupNS:
		return errors.New("--evacuate-cgroup2 needs --pidns and --cgroupns")
	case evac == "." || evac == ".." || strings.ContainsAny(evac, "/\n\x00"):
		return fmt.Errorf("--evacuate-cgroup2 %q: want the name of a cgroup, without '/'", evac)
	}
	return nil
}

func (c *RunConfig) checkSubids() error {
	switch c.Subids {
	case "", SubidAuto, SubidDynamic, SubidStatic:
		return nil
	}
	return fmt.Errorf("--subid-source %q: want auto, dynamic or static", c.Subids)
}

// reaps reports whether the agent waits for orphans. Outside a PID namespace the
// host's init would, had the agent not adopted them to end them with the command.
func (c *RunConfig) reaps() bool { return c.Reaper || !c.PIDNS }
