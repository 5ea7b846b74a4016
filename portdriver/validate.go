package portdriver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxPath is the longest path of a unix socket: sun_path less its NUL (unix(7)).
const maxPath = 107

// maxFDName is the longest name of an inherited listener (sd_listen_fds(3)).
const maxFDName = 255

// Validate says what is wrong with s, in one line; nil if nothing is. The error
// matches ErrSpec. ParseSpec returns valid Specs only.
func (s Spec) Validate() error {
	if err := s.check(); err != nil {
		return mark(fmt.Errorf("port spec %s: %w", quote(s.String()), err), ErrSpec)
	}
	return nil
}

// normal is s in the one form that Validate accepts, for specs that were put
// together by hand: no Proto is TCP, no Count is 1, IPv4 is IPv4.
func (s Spec) normal() Spec {
	if s.Proto == "" {
		s.Proto = TCP
	}
	if s.Count == 0 {
		s.Count = 1
	}
	s.Host.Addr, s.Container.Addr = s.Host.Addr.Unmap(), s.Container.Addr.Unmap()
	return s
}

// IsUDP reports whether p is UDP.
func (p Proto) IsUDP() bool { return strings.HasPrefix(string(p), "udp") }

// Family returns 4 or 6 for a protocol of one IP family, 0 for both.
func (p Proto) Family() int {
	switch p {
	case TCP4, UDP4:
		return 4
	case TCP6, UDP6:
		return 6
	}
	return 0
}

func (p Proto) known() bool { return slices.Contains(Protos, p) }

// protoNames lists the protocols for an error.
func protoNames() string {
	var b strings.Builder
	for i, p := range Protos {
		switch {
		case i == len(Protos)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(p))
	}
	return b.String()
}

func (s Spec) check() error {
	for _, check := range []func(Spec) error{
		Spec.checkWords, Spec.checkShape, Spec.checkPorts, Spec.checkPaths, Spec.checkAddrs,
	} {
		if err := check(s); err != nil {
			return err
		}
	}
	return nil
}

// checkWords checks protocol and PROXY version.
func (s Spec) checkWords() error {
	switch {
	case !s.Proto.known():
		return fmt.Errorf("unknown protocol %s, want %s", quote(string(s.Proto)), protoNames())
	case s.Proxy < 0 || s.Proxy > 2:
		return fmt.Errorf("unknown PROXY protocol version %d, want 1 or 2", s.Proxy)
	case s.Proxy != 0 && s.Proto.IsUDP():
		return errors.New("the PROXY protocol needs a stream, want tcp")
	case s.Proxy != 0 && (s.Reverse || s.Host.Path != ""):
		return errors.New("the PROXY protocol tells a client's address, and a unix socket's clients have none; want a TCP port on the host")
	}
	return nil
}

// checkShape checks that each side is one thing only, and that they fit.
func (s Spec) checkShape() error {
	switch {
	case s.Container.FD != "":
		return errors.New("an inherited listener is the host's, want it on the host's side")
	case !s.Host.single() || !s.Container.single():
		return errors.New("one side has two meanings, want an address and port, a path, or an inherited listener")
	case s.Reverse && s.Host.Path == "":
		return errors.New("a reverse rule leads to a unix socket of the host, want reverse:unix:/PATH:CTRPORT")
	case s.Proto == TCP:
		return nil
	case s.Container.Path != "", s.Host.Path != "" && !s.Reverse:
		return fmt.Errorf("a unix socket carries streams and has no IP family, want no /%s", s.Proto)
	case s.Reverse && s.Proto.IsUDP():
		return errors.New("a unix socket carries streams, want tcp")
	}
	return nil
}

// single reports whether a side is not two things at once.
func (side Side) single() bool {
	internet := side.Addr.IsValid() || side.Port != 0
	switch {
	case side.Path != "":
		return side.FD == "" && !internet
	case side.FD != "":
		return !internet
	}
	return true
}

func (s Spec) checkPorts() error {
	switch last := s.Count - 1; {
	case s.Count < 1 || s.Count > 65535:
		return fmt.Errorf("%d ports, want 1 to 65535", s.Count)
	case s.Count > 1 && (s.Host.Path != "" || s.Host.FD != "" || s.Container.Path != ""):
		return errors.New("a range needs ports on both sides, want one port")
	case s.Container.Path == "" && s.Container.Port == 0:
		return errors.New("the container's port is missing, want 1 to 65535")
	case int(s.Container.Port)+last > 65535 || int(s.Host.Port)+last > 65535:
		return errors.New("a range runs over the last port, want 1 to 65535")
	}
	return nil
}

func (s Spec) checkPaths() error {
	for _, path := range []string{s.Host.Path, s.Container.Path} {
		switch {
		case path == "":
		case path[0] != '/' || path[len(path)-1] == '/':
			return fmt.Errorf("%s is no path of a unix socket, want an absolute one", quote(path))
		case len(path) > maxPath:
			return fmt.Errorf("a unix socket's path of %d bytes, want at most %d", len(path), maxPath)
		case !plain(path):
			return fmt.Errorf("%s cannot be told from the rest, want a path of printable characters without %q and %q", quote(path), ":", proxySuffix)
		}
	}
	if name := s.Host.FD; len(name) > maxFDName || !plain(name) {
		return fmt.Errorf("%s is no name of an inherited listener, want up to %d printable characters without %q", quote(name), maxFDName, ":")
	}
	return nil
}

// plain reports whether a path or name can stand in a spec, and in a line of text.
func plain(name string) bool {
	return utf8.ValidString(name) && !strings.Contains(name, proxySuffix) && !strings.ContainsFunc(name, func(r rune) bool {
		return r == ':' || r < ' ' || r == 0x7f
	})
}

func (s Spec) checkAddrs() error {
	if err := checkHostAddr(s.Host.Addr); err != nil {
		return err
	}
	if err := s.checkContainerAddr(s.Container.Addr); err != nil {
		return err
	}
	listening := s.Host.Addr
	if s.Reverse {
		listening = s.Container.Addr
	}
	switch family := s.Proto.Family(); {
	case family == 4 && listening.Is6():
		return fmt.Errorf("%s is IPv6 and the protocol %s, want %s6", listening, s.Proto, s.Proto[:3])
	case family == 6 && listening.Is4():
		return fmt.Errorf("%s is IPv4 and the protocol %s, want %s4", listening, s.Proto, s.Proto[:3])
	}
	return nil
}

func checkHostAddr(a netip.Addr) error {
	switch local := a.Is6() && a.IsLinkLocalUnicast(); {
	case strings.ContainsFunc(a.Zone(), func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:[],", r) }):
		return fmt.Errorf("%s is no name of an interface", quote(a.Zone()))
	case a.Is4In6():
		return fmt.Errorf("%s is IPv4 in IPv6, want %s", a, a.Unmap())
	case a.IsMulticast():
		return fmt.Errorf("%s is a multicast address, want one of the host's own", a)
	case local && a.Zone() == "":
		return fmt.Errorf("%s is link-local and needs its interface, want [%s%%INTERFACE]", a, a)
	case !local && a.Zone() != "":
		return fmt.Errorf("%s has a zone, want one with link-local addresses only", a)
	}
	return nil
}

func (s Spec) checkContainerAddr(a netip.Addr) error {
	switch {
	case a.Zone() != "", a.Is6() && a.IsLinkLocalUnicast():
		return fmt.Errorf("%s is link-local, want the container's address or none", quote(a.String()))
	case a.Is4In6():
		return fmt.Errorf("%s is IPv4 in IPv6, want %s", a, a.Unmap())
	case a.IsMulticast():
		return fmt.Errorf("%s is a multicast address, want one of the container's own", a)
	case a.IsUnspecified() && !s.Reverse:
		return fmt.Errorf("%s is nothing to connect to, want the container's address or none", a)
	}
	return nil
}
