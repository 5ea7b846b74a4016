// Package inspectview renders what package inspect found: a tree, five lines about
// one process, or a picture for Graphviz. Everything here is pure.
package inspectview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-net/postern/userns/inspect"
)

// Limits of the text forms; JSON has everything.
const (
	maxCommand = 72 // runes of a command line
	maxShown   = 12 // processes of one group
)

// userTitle says whose a user namespace is.
func userTitle(r *inspect.Report, u *inspect.User) string {
	s := fmt.Sprintf("user %d", u.ID)
	if u.ID == r.Self.User {
		s += "  yours"
		if u.Parent == 0 {
			s += ", the outermost that you may see"
		}
		return s + problem(u.Problem)
	}
	if u.Owner != nil {
		s += fmt.Sprintf("  of uid %d", *u.Owner)
	}
	if len(u.UIDMap) > 0 {
		s += ", ids " + ids(u.UIDMap)
	}
	return s + problem(u.Problem)
}

// ids prints a map's lines: "0=1000 1..65536=100000..165535".
func ids(lines []string) string {
	var parts []string
	for _, line := range lines {
		var in, out, n uint64
		if _, err := fmt.Sscan(line, &in, &out, &n); err != nil {
			continue
		}
		if len(parts) == 4 {
			parts = append(parts, "…")
			break
		}
		if n == 1 {
			parts = append(parts, fmt.Sprintf("%d=%d", in, out))
		} else {
			parts = append(parts, fmt.Sprintf("%d..%d=%d..%d", in, in+n-1, out, out+n-1))
		}
	}
	return strings.Join(parts, " ")
}

func problem(why string) string {
	if why == "" {
		return ""
	}
	return "  [not readable: " + why + "]"
}

// netTitle says whose a network is.
func netTitle(r *inspect.Report, n *inspect.Network) string {
	s := fmt.Sprintf("net %d", n.ID)
	if n.ID == r.Self.Net {
		s += "  yours"
	}
	if len(n.Names) > 0 {
		s += "  " + strings.Join(n.Names, ", ")
	}
	return s + problem(n.Problem)
}

// netName is a short name of a network, for the other end of something.
func netName(r *inspect.Report, id uint64) string {
	n := r.Network(id)
	switch {
	case id == 0 || n == nil:
		return "a network that you may not see"
	case len(n.Names) > 0:
		return fmt.Sprintf("net %d (%s)", id, n.Names[0])
	case id == r.Self.Net:
		return fmt.Sprintf("net %d (yours)", id)
	}
	return fmt.Sprintf("net %d", id)
}

// ifLine describes an interface.
func ifLine(r *inspect.Report, n *inspect.Network, l *inspect.Interface) string {
	parts := []string{l.Name}
	if l.Kind != "" {
		parts = append(parts, l.Kind)
	}
	if !l.Up {
		parts = append(parts, "down")
	}
	for _, a := range l.Addresses {
		if !a.Addr().IsLinkLocalUnicast() {
			parts = append(parts, a.String())
		}
	}
	s := strings.Join(parts, " ")
	if l.Bridge != "" {
		s += ", port of " + l.Bridge
	}
	return s + joined(r, n, l)
}

// joined says what an interface is connected with.
func joined(r *inspect.Report, n *inspect.Network, l *inspect.Interface) string {
	s := ""
	if p := l.Peer; p != nil {
		name := p.Name
		if name == "" {
			name = fmt.Sprintf("interface %d", p.Index)
		}
		switch {
		case l.Kind == "veth" && p.Net == n.ID:
			s = " <-> " + name
		case l.Kind == "veth":
			s = " <-> " + name + " in " + netName(r, p.Net)
		case p.Net == n.ID:
			s = " on " + name
		default:
			s = " on " + name + " in " + netName(r, p.Net)
		}
	}
	if e := l.Engine; e != nil {
		s += fmt.Sprintf(", served by %s, process %d", e.Kind, e.PID)
		if e.Net != 0 && e.Net != n.ID {
			s += " in " + netName(r, e.Net)
		}
	} else if l.Kind == "tun" {
		s += ", served by a process that you may not see"
	}
	return s
}

// portLine describes a published port.
func portLine(p inspect.Port) string { return inspect.Clean(p.Rule, maxCommand) }

// processLine describes a process.
func processLine(p *inspect.Process) string {
	s := fmt.Sprintf("%d %s", p.PID, inspect.Clean(p.Command, maxCommand))
	if p.Owner != nil {
		s += "  [" + p.Owner.String() + "]"
	}
	return s + problem(p.Problem)
}

// group is the processes of one mount and PID namespace.
type group struct {
	mount, pid uint64
	processes  []*inspect.Process
}

// groups divides the processes of a network.
func groups(r *inspect.Report, network uint64, user uint64) []group {
	var list []group
	for i := range r.Processes {
		p := &r.Processes[i]
		if p.NS.Net != network || p.NS.User != user {
			continue
		}
		at := slices.IndexFunc(list, func(g group) bool { return g.mount == p.NS.Mount && g.pid == p.NS.PID })
		if at < 0 {
			at = len(list)
			list = append(list, group{mount: p.NS.Mount, pid: p.NS.PID})
		}
		list[at].processes = append(list[at].processes, p)
	}
	slices.SortFunc(list, func(a, b group) int { return cmp.Or(cmp.Compare(a.mount, b.mount), cmp.Compare(a.pid, b.pid)) })
	return list
}
