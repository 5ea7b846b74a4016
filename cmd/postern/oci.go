package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/postern-net/postern/portdriver"
)

func (a *app) ociCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "oci",
		Short: "Networks for plain runc and crun bundles",
		Long: `Make a plain OCI bundle one whose containers have a network of their own, with
published ports: prepare edits its config.json, and from then on runc or crun
calls postern when a container is created and when it is deleted.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("no command given (see postern oci --help)")
		},
	}
	cmd.AddCommand(a.ociPrepareCommand(), a.ociHookCommand(), a.ociServeCommand())
	return cmd
}

// hookFlags are the flags of run and attach that a bundle's containers may have:
// those that are about the network and not about one instance.
var hookFlags = []string{
	"publish-auto", "port-driver", "cidr", "cidr6", "mtu", "ifname", "allow-host-loopback", "outbound-addr",
	"dns", "dns-search", "endpoint", "tcp", "udp-idle", "udp-idle-unreplied", "log-level", "log-format",
}

// registerHookFlags registers them with the help and the defaults that they have
// there.
func registerHookFlags(fs *pflag.FlagSet, shared *networkFlags) {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	shared.register(all)
	for _, name := range hookFlags {
		if f := all.Lookup(name); f != nil {
			fs.AddFlag(f)
		}
	}
}

// given are those of them that a command line has, as arguments.
func given(fs *pflag.FlagSet) (args []string) {
	for _, name := range hookFlags {
		f := fs.Lookup(name)
		if f == nil || !f.Changed {
			continue
		}
		values := []string{f.Value.String()}
		if many, ok := f.Value.(pflag.SliceValue); ok {
			values = many.GetSlice()
		}
		for _, v := range values {
			args = append(args, "--"+name+"="+v)
		}
	}
	return args
}

// ownAddress is the value of --host-ip that gives each container its own.
const ownAddress = "auto"

// parseHostIP checks --host-ip: "", auto, or an address of the host.
func parseHostIP(text string) error {
	if text == "" || text == ownAddress {
		return nil
	}
	if addr, err := netip.ParseAddr(text); err != nil || addr.IsMulticast() {
		return fmt.Errorf("--host-ip %q: want auto or an address of the host", text)
	}
	return nil
}

// onAddress gives the specs without a host address that one. It does not concern
// unix sockets.
func onAddress(specs []portdriver.Spec, addr netip.Addr) ([]portdriver.Spec, error) {
	out := make([]portdriver.Spec, 0, len(specs))
	for _, s := range specs {
		if s.Host.Path == "" && s.Host.FD == "" && !s.Reverse && !s.Host.Addr.IsValid() && addr.IsValid() {
			s.Host.Addr = addr
		}
		s, err := portdriver.ParseSpec(s.String())
		if err != nil {
			return nil, fmt.Errorf("publish on %s: %w", addr, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// bundleSpecs parses the specs of a bundle. They stand in an annotation, between
// blanks, and nothing is inherited by a hook.
func bundleSpecs(texts []string) ([]portdriver.Spec, error) {
	specs := make([]portdriver.Spec, 0, len(texts))
	for _, text := range texts {
		s, err := portdriver.ParseSpec(text)
		if err != nil {
			return nil, err
		}
		if strings.ContainsAny(text, " \t\r\n") {
			return nil, fmt.Errorf("port spec %q: a bundle's path may have no blanks", text)
		}
		if s.Host.FD != "" {
			return nil, fmt.Errorf("port spec %q: a hook inherits no listener", text)
		}
		if s.Container.Path != "" {
			return nil, fmt.Errorf("port spec %q: the container of a bundle has no files for us, so no unix socket; want a port", text)
		}
		specs = append(specs, s)
	}
	return specs, nil
}
