package rootlesskit

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"

	"github.com/postern-net/postern/portdriver"
)

// specsOf says in our words what RootlessKit's spec asks for; child is where one
// without a child address leads. All of the specs together are the rule.
func specsOf(p port.Spec, child netip.Addr) ([]portdriver.Spec, error) {
	spec := portdriver.Spec{Proto: portdriver.Proto(p.Proto), Count: 1}
	if !slices.Contains(portdriver.Protos, spec.Proto) {
		return nil, fmt.Errorf("protocol %.16q: want one of %v", p.Proto, portdriver.Protos)
	}
	var err error
	if spec.Host.Port, err = portOf("parent", p.ParentPort); err != nil {
		return nil, err
	}
	if spec.Container.Port, err = portOf("child", p.ChildPort); err != nil {
		return nil, err
	}
	spec.Container.Addr = child
	if p.ChildIP != "" {
		if spec.Container.Addr, err = addrOf("child", p.ChildIP); err != nil {
			return nil, err
		}
	}
	if p.ParentIP != "" {
		if spec.Host.Addr, err = addrOf("parent", p.ParentIP); err != nil {
			return nil, err
		}
		return []portdriver.Spec{spec}, nil
	}
	var specs []portdriver.Spec
	for _, addr := range everywhere(spec.Proto) {
		spec.Host.Addr = addr
		specs = append(specs, spec)
	}
	return specs, nil
}

// everywhere is every address of the host, in the families of a protocol.
func everywhere(p portdriver.Proto) []netip.Addr {
	switch p {
	case portdriver.TCP4, portdriver.UDP4:
		return []netip.Addr{netip.IPv4Unspecified()}
	case portdriver.TCP6, portdriver.UDP6:
		return []netip.Addr{netip.IPv6Unspecified()}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

func portOf(side string, n int) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("%s port %d: want 1 to 65535", side, n)
	}
	return uint16(n), nil
}

func addrOf(side, text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s address %.64q: want an IP address", side, text)
	}
	return addr.Unmap(), nil
}

// addressesOf is what can be known of the container's network from RootlessKit.
// Clients who cannot be shown as they are need a gateway's address to appear as; no
// packet is ever sent there, so where RootlessKit names none, any of that kind will do.
func addressesOf(ctx *port.ChildContext, other portdriver.Addresses) portdriver.Addresses {
	a := portdriver.Addresses{Gateway4: other.Gateway4, Gateway6: other.Gateway6}
	if ctx == nil {
		return a
	}
	if ip, ok := netip.AddrFromSlice(ctx.IP.To4()); ok {
		a.Container4 = ip
	}
	if ip, ok := netip.AddrFromSlice(ctx.GatewayIP.To4()); ok {
		a.Gateway4 = ip
	}
	return a
}

// datagramRoutes is how datagrams are taken to the container: the server sees its own
// address with the client's port. It cannot be shown the client's, because a server
// that is bound to the wildcard address answers through the network driver, which is
// not ours (rootless-containers/rootlesskit#592).
func datagramRoutes(client, target netip.AddrPort) []portdriver.Route {
	return []portdriver.Route{{Source: netip.AddrPortFrom(target.Addr(), client.Port()), Target: target}}
}
