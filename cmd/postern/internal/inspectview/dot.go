package inspectview

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/postern-net/postern/userns/inspect"
)

// Dot writes a graph for Graphviz (dot(1)): networks are boxes within user namespaces,
// veth pairs and engines are edges. only restricts it to some networks; nil: all.
func Dot(w io.Writer, r *inspect.Report, only map[uint64]bool) error {
	d := &drawing{tree: tree{r: r, only: only}}
	d.line(0, "graph namespaces {")
	d.line(1, "node [shape=box, fontname=monospace]; compound=true; rankdir=LR;")
	for i := range r.Users {
		if u := &r.Users[i]; r.User(u.Parent) == nil {
			d.cluster(u, 1)
		}
	}
	for _, n := range d.networks(0) {
		d.node(n, 1)
	}
	d.edges()
	d.line(0, "}")
	_, err := w.Write(d.out.Bytes())
	return err
}

type drawing struct{ tree }

func (d *drawing) cluster(u *inspect.User, depth int) {
	if depth > maxDepth || !d.has(u, depth) {
		return
	}
	d.line(depth, "subgraph cluster_%d {", u.ID)
	d.line(depth+1, "label=%s;", quote(userTitle(d.r, u)))
	for _, n := range d.networks(u.ID) {
		d.node(n, depth+1)
	}
	for i := range d.r.Users {
		if d.r.Users[i].Parent == u.ID {
			d.cluster(&d.r.Users[i], depth+1)
		}
	}
	d.line(depth, "}")
}

func (d *drawing) node(n *inspect.Network, depth int) {
	lines := []string{netTitle(d.r, n)}
	for i := range n.Interfaces {
		l := n.Interfaces[i]
		text := l.Name
		for _, a := range l.Addresses {
			if !a.Addr().IsLinkLocalUnicast() {
				text += " " + a.String()
			}
		}
		lines = append(lines, text)
	}
	for _, p := range n.Ports {
		lines = append(lines, portLine(p))
	}
	for _, g := range groups(d.r, n.ID, owner(d.r, n)) {
		shown, others := pick(g.processes)
		for _, p := range shown {
			lines = append(lines, processLine(p))
		}
		if others > 0 {
			lines = append(lines, fmt.Sprintf("and %d more", others))
		}
	}
	d.line(depth, "n%d [label=%s];", n.ID, quote(lines...))
}

// edges draws a veth pair once, from the lower number, and an engine's reach.
func (d *drawing) edges() {
	var out bytes.Buffer
	for i := range d.r.Networks {
		n := &d.r.Networks[i]
		if d.only != nil && !d.only[n.ID] {
			continue
		}
		for j := range n.Interfaces {
			l := &n.Interfaces[j]
			if p := l.Peer; p != nil && p.Net > n.ID && d.r.Network(p.Net) != nil && (d.only == nil || d.only[p.Net]) {
				fmt.Fprintf(&out, "  n%d -- n%d [label=%s];\n", n.ID, p.Net, quote(l.Name+" <-> "+p.Name))
			}
			if e := l.Engine; e != nil {
				fmt.Fprintf(&out, "  e%d [shape=ellipse, label=%s];\n  n%d -- e%d [label=%s];\n",
					e.PID, quote(fmt.Sprintf("%s %d", e.Kind, e.PID)), n.ID, e.PID, quote(l.Name))
				if d.r.Network(e.Net) != nil && (d.only == nil || d.only[e.Net]) {
					fmt.Fprintf(&out, "  e%d -- n%d [style=dashed];\n", e.PID, e.Net)
				}
			}
		}
	}
	d.out.Write(out.Bytes())
}

// quote makes a string of DOT, lines left-justified.
func quote(lines ...string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i, line := range lines {
		line = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", "?").Replace(line)
		b.WriteString(line)
		if len(lines) > 1 || i > 0 {
			b.WriteString(`\l`)
		}
	}
	b.WriteByte('"')
	return b.String()
}
