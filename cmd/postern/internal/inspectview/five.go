package inspectview

import (
	"fmt"
	"io"
	"strings"

	"github.com/postern-net/postern/userns/inspect"
)

// Five writes five lines about one process: itself, its user namespace, its network,
// its other namespaces, and its way out.
func Five(w io.Writer, r *inspect.Report, p *inspect.Process) error {
	who := fmt.Sprintf("uid %d", p.UID)
	if p.Inner != 0 && p.Inner != p.PID {
		who += fmt.Sprintf(", process %d in there", p.Inner)
	}
	if p.Owner != nil {
		who += ", " + p.Owner.String()
	}
	_, err := fmt.Fprintf(w, "process  %d %s (%s)%s\nuser     %s\nnetwork  %s\nothers   mnt %d, pid %d%s\nway out  %s\n",
		p.PID, inspect.Clean(p.Command, maxCommand), who, problem(p.Problem),
		userOf(r, p), networkOf(r, p), p.NS.Mount, p.NS.PID, shared(r, p), wayOut(r, p))
	return err
}

func userOf(r *inspect.Report, p *inspect.Process) string {
	u := r.User(p.NS.User)
	if u == nil {
		return "not readable"
	}
	s := strings.TrimPrefix(userTitle(r, u), "user ")
	if u.Parent != 0 {
		s += fmt.Sprintf(", below user %d", u.Parent)
	}
	return s
}

func networkOf(r *inspect.Report, p *inspect.Process) string {
	n := r.Network(p.NS.Net)
	if n == nil {
		return "not readable"
	}
	s := strings.TrimPrefix(netTitle(r, n), "net ")
	var list []string
	for i := range n.Interfaces {
		l := &n.Interfaces[i]
		item := l.Name
		for _, a := range l.Addresses {
			if !a.Addr().IsLinkLocalUnicast() && !a.Addr().IsLoopback() {
				item += " " + a.String()
			}
		}
		list = append(list, item)
	}
	if len(list) > 0 {
		s += ": " + strings.Join(list, ", ")
	}
	return s
}

// shared says which of these namespaces are the caller's.
func shared(r *inspect.Report, p *inspect.Process) string {
	switch m, i := p.NS.Mount == r.Self.Mount, p.NS.PID == r.Self.PID; {
	case m && i:
		return ", both yours"
	case m:
		return ", the first yours"
	case i:
		return ", the second yours"
	}
	return ""
}

// wayOut follows the interfaces from a process's network to an engine or to the
// caller's own network.
func wayOut(r *inspect.Report, p *inspect.Process) string {
	n := r.Network(p.NS.Net)
	switch {
	case n == nil:
		return "not readable"
	case n.ID == r.Self.Net:
		return "it is in your own network"
	}
	path, last := follow(r, n, map[uint64]bool{})
	if path == "" {
		path = "none: no interface leads out of this network"
	}
	var ports []string
	for _, port := range last.Ports {
		ports = append(ports, portLine(port))
	}
	if len(ports) > 0 {
		path += "; published " + strings.Join(ports, ", ")
	}
	return path
}

// follow is a depth-first search over veth pairs; last is the network at its end.
func follow(r *inspect.Report, n *inspect.Network, seen map[uint64]bool) (path string, last *inspect.Network) {
	seen[n.ID] = true
	for i := range n.Interfaces {
		if l := &n.Interfaces[i]; l.Engine != nil {
			return fmt.Sprintf("%s, served by %s, process %d", l.Name, l.Engine.Kind, l.Engine.PID), n
		}
	}
	for i := range n.Interfaces {
		l := &n.Interfaces[i]
		if l.Peer == nil || l.Peer.Net == n.ID || seen[l.Peer.Net] {
			continue
		}
		other := r.Network(l.Peer.Net)
		if other == nil {
			continue
		}
		step := fmt.Sprintf("%s <-> %s in %s", l.Name, l.Peer.Name, netName(r, other.ID))
		if other.ID == r.Self.Net {
			return step, other
		}
		if rest, last := follow(r, other, seen); rest != "" {
			return step + ", then " + rest, last
		}
	}
	return "", n
}
