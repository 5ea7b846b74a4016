package apisock

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"

	"github.com/postern-net/postern/portdriver"
	wire "github.com/postern-net/postern/proto/api"
)

// list is GET /v1/ports. A rule that is no matter of ports of both sides cannot be
// expressed there.
func (rt *routes) list(w http.ResponseWriter, _ *http.Request) {
	statuses := []port.Status{} // [] and not null
	for _, r := range rt.ports.Rules() {
		if s := statusIn(r, 0).Spec; r.Spec.Reverse || s.ParentPort == 0 || s.ChildPort == 0 {
			continue
		}
		for n := range r.Spec.Count {
			statuses = append(statuses, statusIn(r, n))
		}
	}
	write(w, http.StatusOK, statuses)
}

// add is POST /v1/ports.
func (rt *routes) add(w http.ResponseWriter, r *http.Request) {
	var request port.Spec
	err := wire.Decode(r.Body, wire.MaxRootlessKit, &request)
	var spec portdriver.Spec
	if err == nil {
		if spec, err = specOf(request); err == nil {
			spec = rt.complete(spec)
		}
	}
	var rules []portdriver.Rule
	if err == nil {
		rules, err = rt.change(w, r, []portdriver.Spec{spec})
	}
	if err != nil {
		fail(w, statusOf(err), err)
		return
	}
	write(w, http.StatusCreated, statusIn(rules[0], 0))
}

// Defaulter is implemented by Ports whose clients expect what RootlessKit does with
// addresses that they leave out.
type Defaulter interface {
	// Defaults says whether a port without parentIP is on every IPv4 address of the
	// host, or IPv6 address for a protocol of that family, and where a port without
	// childIP leads to; the zero Addr is the container's address.
	Defaults() (everywhere bool, child netip.Addr)
}

// complete adds the addresses that were left out, where they do not mean what they
// mean everywhere in postern.
func (rt *routes) complete(spec portdriver.Spec) portdriver.Spec {
	d, ok := rt.ports.(Defaulter)
	if !ok {
		return spec
	}
	everywhere, child := d.Defaults()
	if everywhere && !spec.Host.Addr.IsValid() {
		spec.Host.Addr = netip.IPv4Unspecified()
		if spec.Proto.Family() == 6 {
			spec.Host.Addr = netip.IPv6Unspecified()
		}
	}
	if !spec.Container.Addr.IsValid() {
		spec.Container.Addr = child
	}
	return spec
}

// statusIn puts port n of a rule, from 0, in RootlessKit's words. The addresses are
// as they were asked for: nerdctl finds its own rules by them.
func statusIn(r portdriver.Rule, n int) port.Status {
	host, container := r.Spec.Host, r.Spec.Container
	if host.FD != "" && len(r.Listeners) > 0 {
		host.Addr, host.Port = r.Listeners[0].Bound.Addr(), r.Listeners[0].Bound.Port()
	}
	return port.Status{ID: r.ID, Spec: port.Spec{
		Proto:    string(r.Spec.Proto),
		ParentIP: text(host.Addr), ParentPort: plus(host.Port, n),
		ChildIP: text(container.Addr), ChildPort: plus(container.Port, n),
	}}
}

// plus is the port n behind another; none stays none.
func plus(port uint16, n int) int {
	if port == 0 {
		return 0
	}
	return int(port) + n
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// specOf reads what a client of RootlessKit's asks for.
func specOf(p port.Spec) (spec portdriver.Spec, err error) {
	spec = portdriver.Spec{Proto: portdriver.Proto(p.Proto), Count: 1}
	if !slices.Contains(portdriver.Protos, spec.Proto) {
		return spec, fmt.Errorf("proto %.16q: want one of %v", p.Proto, portdriver.Protos)
	}
	if spec.Host.Addr, err = parseIP("parentIP", p.ParentIP); err != nil {
		return spec, err
	}
	if spec.Container.Addr, err = parseIP("childIP", p.ChildIP); err != nil {
		return spec, err
	}
	if spec.Host.Port, err = parsePort("parentPort", p.ParentPort, 0); err != nil {
		return spec, err
	}
	if spec.Container.Port, err = parsePort("childPort", p.ChildPort, 1); err != nil {
		return spec, err
	}
	return spec, spec.Validate()
}

func parseIP(name, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s %.64q: want an IP address", name, s)
	}
	return addr.Unmap(), nil
}

func parsePort(name string, n, lowest int) (uint16, error) {
	if n < lowest || n > 65535 {
		return 0, fmt.Errorf("%s %d: want %d to 65535", name, n, lowest)
	}
	return uint16(n), nil
}
