package rootlesskitcli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/portdriver"
)

// specForm is RootlessKit's form of a published port.
const specForm = "want PARENTIP:PARENTPORT:[CHILDIP:]CHILDPORT/PROTO, like 127.0.0.1:8080:80/tcp"

// target says where a rule without a child's address leads to. RootlessKit's builtin
// driver dials the child's 127.0.0.1, and only servers that listen there, or
// everywhere, are reached; slirp4netns and gvisor-tap-vsock send to its interface.
var target = map[string]netip.Addr{
	"builtin":          netip.AddrFrom4([4]byte{127, 0, 0, 1}),
	"pesto":            {},
	"implicit":         {},
	"slirp4netns":      {},
	"gvisor-tap-vsock": {},
}

// checkDriver refuses names that RootlessKit does not know either.
func (f *portFlags) checkDriver() error {
	_, known := target[f.driver]
	switch {
	case f.driver == "pasta":
		return fmt.Errorf(`unknown port driver "pasta": did you mean "pesto"?`)
	case !known && f.driver != "none":
		return fmt.Errorf("unknown port driver: %.64s (want none, implicit, builtin, slirp4netns, gvisor-tap-vsock or pesto)", f.driver)
	}
	return nil
}

// configure sets the ports of an instance with a network. ipv6 says that this host
// has IPv6.
func (f *portFlags) configure(cfg *supervisor.RunConfig, ipv6 bool, notes *notes) error {
	if f.driver == "none" {
		if len(f.publish) > 0 {
			return fmt.Errorf("--publish %s: --port-driver=none (the default) publishes nothing; use --port-driver=builtin", f.publish[0])
		}
		cfg.PortDriver = supervisor.PortDriverNone
		return nil
	}
	child := target[f.driver]
	cfg.PortDriver = supervisor.PortDriverAuto
	cfg.RootlessKit.Everywhere, cfg.RootlessKit.Child = true, child
	switch {
	case f.driver == "implicit":
		cfg.PublishAuto, cfg.RootlessKit.AutoEverywhere = true, true
		cfg.RootlessKit.DriverName = f.driver // Docker and nerdctl leave ports alone where they read that
		notes.debug("--port-driver=implicit: what the command listens on is published on all addresses of this host, or on its loopback")
	case f.driver != "builtin":
		notes.warn("--port-driver=" + f.driver + " is served by postern's own driver")
	}
	if !f.transparent {
		notes.debug("--source-ip-transparent=false is ignored: servers see the client's address and need no firewall rules for it")
	}
	for _, text := range f.publish {
		specs, err := parsePort(text, child, ipv6)
		if err != nil {
			return err
		}
		cfg.Publish = append(cfg.Publish, specs...)
	}
	return nil
}

// parsePort reads a published port. One without a parent's address is on every
// address of the host, as RootlessKit has it, which is one rule for each family.
func parsePort(text string, child netip.Addr, ipv6 bool) ([]portdriver.Spec, error) {
	spec, err := parseSpec(text)
	if err != nil {
		return nil, fmt.Errorf("--publish %.128q: %w", text, err)
	}
	if !spec.Container.Addr.IsValid() {
		spec.Container.Addr = child
	}
	specs := []portdriver.Spec{spec}
	if !spec.Host.Addr.IsValid() {
		specs = everywhere(spec, ipv6)
	}
	for _, s := range specs {
		if err := s.Validate(); err != nil {
			return nil, fmt.Errorf("--publish: %w", err)
		}
	}
	return specs, nil
}

// everywhere puts a spec on all addresses of the families that its protocol has.
func everywhere(spec portdriver.Spec, ipv6 bool) (specs []portdriver.Spec) {
	family := spec.Proto.Family()
	if family != 6 {
		spec.Host.Addr = netip.IPv4Unspecified()
		specs = append(specs, spec)
	}
	if family == 6 || family == 0 && ipv6 {
		spec.Host.Addr = netip.IPv6Unspecified()
		specs = append(specs, spec)
	}
	return specs
}

func parseSpec(text string) (spec portdriver.Spec, err error) {
	rest, proto, found := cutLast(text, "/")
	if !found {
		return spec, fmt.Errorf("the protocol is missing, %s", specForm)
	}
	if strings.HasPrefix(proto, "sctp") {
		return spec, fmt.Errorf("SCTP cannot be published, want one of %v", portdriver.Protos)
	}
	parts, err := fields(rest)
	if err != nil {
		return spec, err
	}
	spec = portdriver.Spec{Proto: portdriver.Proto(proto), Count: 1}
	last := len(parts) - 1
	if spec.Host.Addr, err = parseAddr("PARENTIP", parts[0]); err != nil {
		return spec, err
	}
	if spec.Host.Port, err = parseNumber("PARENTPORT", parts[1]); err != nil {
		return spec, err
	}
	if last == 3 {
		if spec.Container.Addr, err = parseAddr("CHILDIP", parts[2]); err != nil {
			return spec, err
		}
	}
	spec.Container.Port, err = parseNumber("CHILDPORT", parts[last])
	return spec, err
}

// fields splits at the colons that are not in brackets, and takes the brackets away.
func fields(text string) (parts []string, err error) {
	for more := true; more; {
		var field string
		if inner, ok := strings.CutPrefix(text, "["); ok {
			var closed bool
			if field, text, closed = strings.Cut(inner, "]"); !closed || text != "" && text[0] != ':' {
				return nil, fmt.Errorf("%q: the bracket is not closed, %s", "["+inner, specForm)
			}
			text, more = strings.CutPrefix(text, ":")
		} else {
			field, text, more = strings.Cut(text, ":")
		}
		parts = append(parts, field)
	}
	if len(parts) != 3 && len(parts) != 4 {
		return nil, fmt.Errorf("it has %d parts, %s", len(parts), specForm)
	}
	return parts, nil
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func parseAddr(what, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s %q: want an IP address, %s", what, text, specForm)
	}
	return addr.Unmap(), nil
}

func parseNumber(what, text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s %q: want 1 to 65535, %s", what, text, specForm)
	}
	return uint16(n), nil
}
