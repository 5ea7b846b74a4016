package portdriver

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String returns the canonical text: ParseSpec(s.String()) is s for every Spec that
// Validate accepts.
func (s Spec) String() string {
	var b strings.Builder
	if s.Reverse {
		b.WriteString(reversePrefix)
	}
	b.WriteString(s.Host.text(s.Count) + ":" + s.Container.text(s.Count))
	if s.Container.Path == "" {
		b.WriteString("/" + string(s.Proto))
	}
	if s.Proxy != 0 {
		b.WriteString(proxySuffix + "v" + strconv.Itoa(s.Proxy))
	}
	return b.String()
}

// text is one side as it stands in a Spec.
func (side Side) text(count int) string {
	switch {
	case side.Path != "":
		return unixPrefix + side.Path
	case side.FD != "":
		return fdPrefix + side.FD
	case side.Addr.IsValid():
		return host(side.Addr) + ":" + ports(side.Port, count)
	}
	return ports(side.Port, count)
}

// host is an address as it stands before a colon.
func host(addr netip.Addr) string {
	if addr.Is6() {
		return "[" + addr.String() + "]"
	}
	return addr.String()
}

// ports is a port or a range; nothing for any free port.
func ports(first uint16, count int) string {
	switch {
	case first == 0:
		return ""
	case count <= 1:
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, int(first)+count-1)
}

// String says where clients come and where they are taken, such as
// "127.0.0.1:8080, [::1]:8080 -> 80/tcp".
func (r Rule) String() string {
	s := r.Spec
	from, to := s.Host, s.Container
	if s.Reverse {
		from, to = to, from
	}
	text := r.from(from) + " -> " + to.text(s.Count)
	if to.Path == "" {
		text += "/" + string(s.Proto)
	}
	if s.Reverse {
		text = "container " + text
	}
	return text
}

// from is the side where clients come, with the addresses that were bound.
func (r Rule) from(side Side) string {
	if side.Path != "" || len(r.Listeners) == 0 {
		return side.text(r.Spec.Count)
	}
	var where []string
	for i, l := range r.Listeners {
		switch {
		case !l.Bound.IsValid():
			return side.text(r.Spec.Count)
		case i == 0 || l.Bound.Addr() != r.Listeners[i-1].Bound.Addr():
			where = append(where, host(l.Bound.Addr())+":"+ports(l.Bound.Port(), r.Spec.Count))
		}
	}
	return strings.Join(where, ", ")
}
