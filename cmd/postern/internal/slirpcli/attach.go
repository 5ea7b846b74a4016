package slirpcli

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
)

// Lookup returns the addresses that an address or the name of an interface stands
// for, those of both families.
type Lookup func(addressOrInterface string) ([]netip.Addr, error)

// Attach returns the configuration that the options mean. What concerns the process
// is the caller's to fill in: descriptors, the TAP and the virtual machine's socket among
// them, directories, streams and the log's level. The notes are lines for the user: what
// was asked for and is not given to the letter.
func (o *Options) Attach(lookup Lookup) (cfg supervisor.AttachConfig, notes []string, err error) {
	cfg.Command = o.command()
	cfg.Endpoint = o.endpoint()
	cfg.TCP = supervisor.TCPAuto
	cfg.PortDriver = supervisor.PortDriverAuto
	cfg.IfName, cfg.Configure, cfg.MAC = o.TAPName, o.Configure, o.MAC
	cfg.HostLoopback = !o.DisableHostLoopback
	cfg.NoDNS = o.DisableDNS
	cfg.Slirp4netnsSocket = o.APISocket
	o.target(&cfg)
	if err := o.plan(&cfg.Config); err != nil {
		return supervisor.AttachConfig{}, nil, err
	}
	if err := o.outbound(&cfg.Config, lookup); err != nil {
		return supervisor.AttachConfig{}, nil, err
	}
	return cfg, o.limits(&cfg.Config), nil
}

// target says where the network goes.
func (o *Options) target(cfg *supervisor.AttachConfig) {
	switch {
	case o.NetNSType == TypePath:
		cfg.NetNS, cfg.UserNS = o.Path, o.UserNSPath
	case o.NetNSType == TypePID && o.UserNSPath != "":
		// A process's network namespace below another user namespace than its own:
		// by path, which ends with the process too.
		cfg.NetNS, cfg.UserNS = "/proc/"+strconv.Itoa(o.PID)+"/ns/net", o.UserNSPath
	case o.NetNSType == TypePID:
		cfg.PID = o.PID
	}
}

// endpoint is a TAP and nothing else where the caller has made it: what takes its
// place elsewhere would be another interface than the one that the caller
// configures.
func (o *Options) endpoint() supervisor.Endpoint {
	if o.Configure {
		return supervisor.EndpointAuto
	}
	return supervisor.EndpointTAP
}

// plan lays out the addresses.
func (o *Options) plan(cfg *supervisor.Config) (err error) {
	if cfg.Plan.V4, err = netplan.NewFamily(o.CIDR); err != nil {
		return fmt.Errorf("--cidr: %w", err)
	}
	cfg.DHCPFirst, cfg.DHCPLast = cfg.Plan.V4.Pool()
	if o.IPv6 {
		cfg.Plan.V6, err = netplan.NewFamily(netplan.DefaultV6)
	}
	return err
}

// outbound chooses the source addresses. An interface lends its first address of
// the family.
func (o *Options) outbound(cfg *supervisor.Config, lookup Lookup) error {
	for _, f := range []struct {
		flag, value string
		right       func(netip.Addr) bool
		slot        *netip.Addr
	}{
		{"--outbound-addr", o.Outbound4, netip.Addr.Is4, &cfg.Outbound4},
		{"--outbound-addr6", o.Outbound6, netip.Addr.Is6, &cfg.Outbound6},
	} {
		if f.value == "" {
			continue
		}
		all, err := lookup(f.value)
		if err != nil {
			return err
		}
		for _, addr := range all {
			if f.right(addr) && !f.slot.IsValid() {
				*f.slot = addr
			}
		}
		if !f.slot.IsValid() {
			return fmt.Errorf("%s %s: no address of that family", f.flag, f.value)
		}
	}
	return nil
}

// limits keeps the configuration within what there is, and says what that changed.
func (o *Options) limits(cfg *supervisor.Config) (notes []string) {
	cfg.MTU = min(max(o.MTU, stack.MinMTU), stack.MaxMTU)
	if cfg.MTU != o.MTU {
		notes = append(notes, fmt.Sprintf("--mtu %d: using %d, the engine carries %d to %d bytes", o.MTU, cfg.MTU, stack.MinMTU, stack.MaxMTU))
	}
	if o.NetNSType == TypeTAPFD && (o.Configure || o.UserNSPath != "") {
		cfg.Configure, cfg.MAC = false, [6]byte{}
		notes = append(notes, "--configure, --macaddress and --userns-path have no effect with --netns-type=tapfd: no namespace is entered")
	}
	return notes
}

// command is what the instance says it is for.
func (o *Options) command() []string {
	if o.Bess {
		return []string{"slirp4netns", "--target-type=bess", o.Path}
	}
	place := o.Path
	switch o.NetNSType {
	case TypePID:
		place = strconv.Itoa(o.PID)
	case TypeTAPFD:
		place = "tapfd " + strconv.Itoa(o.TAPFD)
	}
	words := []string{"slirp4netns", place}
	if o.TAPName != "" {
		words = append(words, o.TAPName)
	}
	return words
}
