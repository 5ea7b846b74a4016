package rootlesskitcli

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
)

// The drivers that have no engine.
const (
	netHost = "host"
	netNone = "none"
)

// served are the drivers whose work the engine does, and whether it has the same
// addresses as theirs.
var served = map[string]bool{
	"postern":          true,
	"slirp4netns":      true,
	"pasta":            true,
	"vpnkit":           false,
	"gvisor-tap-vsock": false,
}

// maxMTU is the largest --mtu that RootlessKit accepts; its drivers and ours use 65520
// at most (stack.MaxMTU).
const maxMTU = 65521

func (f *networkFlags) configure(cfg *supervisor.RunConfig, n *notes) error {
	cfg.DetachNetNS = f.detach
	if f.mtu < 0 || f.mtu > maxMTU {
		return fmt.Errorf("--mtu %d: want %d to %d, or 0 for the default", f.mtu, stack.MinMTU, stack.MaxMTU)
	}
	alike, known := served[f.driver]
	switch {
	case f.driver == netHost || f.driver == netNone:
		return f.without(cfg, n)
	case f.driver == "lxc-user-nic":
		return errors.New("--net=lxc-user-nic: the bridge of another program cannot be joined; use --net=postern or --net=slirp4netns")
	case !known:
		return fmt.Errorf("unknown network mode: %.64s (want host, none, postern, slirp4netns, pasta, vpnkit or gvisor-tap-vsock)", f.driver)
	}
	switch {
	case !alike:
		n.warn(fmt.Sprintf("--net=%s is served by postern's own engine, with the addresses that slirp4netns has", f.driver))
	case f.driver == "pasta":
		n.warn("--net=pasta is served by postern's own engine")
	}
	if err := f.checkSandbox(n); err != nil {
		return err
	}
	return f.engine(cfg)
}

// without is a command without an engine.
func (f *networkFlags) without(cfg *supervisor.RunConfig, n *notes) error {
	if f.cidr != "" {
		return fmt.Errorf("--cidr: not supported for --net=%s", f.driver)
	}
	if f.ifname != "" {
		return fmt.Errorf("--ifname: not supported for --net=%s", f.driver)
	}
	if f.mtu != 0 {
		n.warn(fmt.Sprintf("--mtu %d is ignored for --net=%s", f.mtu, f.driver))
	}
	if f.ipv6 {
		n.warn("--ipv6 is ignored for --net=" + f.driver)
	}
	cfg.Net = supervisor.NetHost
	// RootlessKit makes the namespace that is asked for also for --net=host, and
	// leaves it empty.
	if f.driver == netNone || f.detach {
		cfg.Net = supervisor.NetNone
	}
	return nil
}

// engine is a command with one.
func (f *networkFlags) engine(cfg *supervisor.RunConfig) error {
	cfg.Net = supervisor.NetEngine
	cfg.Plan.V4 = netplan.Default().V4
	if f.cidr != "" {
		p, err := netip.ParsePrefix(f.cidr)
		if err != nil || !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("--cidr %.64q: want the address of an IPv4 network, like %s", f.cidr, netplan.DefaultV4)
		}
		if cfg.Plan.V4, err = netplan.NewFamily(p); err != nil {
			return fmt.Errorf("--cidr: %w", err)
		}
	}
	if f.ipv6 {
		cfg.Plan.V6 = netplan.Default().V6
	}
	switch cfg.MTU = min(f.mtu, stack.MaxMTU); {
	case f.mtu == 0:
		cfg.MTU = stack.MaxMTU
	case f.mtu < stack.MinMTU:
		return fmt.Errorf("--mtu %d: want %d to %d, or 0 for the default", f.mtu, stack.MinMTU, stack.MaxMTU)
	}
	if cfg.IfName = f.ifname; f.ifname == "" {
		cfg.IfName = "tap0"
	}
	cfg.HostLoopback = !f.noHostLoopback
	return nil
}

// checkSandbox checks the flags about slirp4netns's own confinement. The engine has
// its own, always.
func (f *networkFlags) checkSandbox(n *notes) error {
	if f.driver != "slirp4netns" {
		return nil
	}
	for _, flag := range []struct{ name, value string }{{"sandbox", f.sandbox}, {"seccomp", f.seccomp}} {
		switch flag.value {
		case "auto", "true":
		case "false", "":
			n.debug("--slirp4netns-" + flag.name + "=false is ignored: the engine is always confined")
		default:
			return fmt.Errorf("--slirp4netns-%s %.32q: want auto, true or false", flag.name, flag.value)
		}
	}
	if f.sandbox == "true" && f.detach {
		return errors.New("--slirp4netns-sandbox conflicts with --detach-netns; use --slirp4netns-sandbox=auto")
	}
	return nil
}
