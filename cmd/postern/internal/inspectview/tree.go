package inspectview

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/postern-net/postern/userns/inspect"
)

// Tree writes the namespaces as a tree: user namespaces, in each its networks with
// interfaces, ports and processes, then the user namespaces below it. only restricts
// it to some networks; nil: all.
func Tree(w io.Writer, r *inspect.Report, only map[uint64]bool) error {
	t := &tree{r: r, only: only}
	for i := range r.Users {
		if u := &r.Users[i]; r.User(u.Parent) == nil {
			t.user(u, 0)
		}
	}
	if ownerless := t.networks(0); len(ownerless) > 0 {
		t.line(0, "networks whose owner you may not see")
		for _, n := range ownerless {
			t.network(n, 1)
		}
	}
	if only == nil && r.Unreadable > 0 {
		t.line(0, "%d processes of others, whose namespaces you may not see", r.Unreadable)
	}
	if r.Omitted > 0 {
		t.line(0, "%d things more than are looked at in one go", r.Omitted)
	}
	_, err := w.Write(t.out.Bytes())
	return err
}

type tree struct {
	r    *inspect.Report
	only map[uint64]bool
	out  bytes.Buffer
}

func (t *tree) line(depth int, format string, args ...any) {
	fmt.Fprintf(&t.out, "%s%s\n", strings.Repeat("  ", depth), fmt.Sprintf(format, args...))
}

// networks are those of a user namespace that are to be shown.
func (t *tree) networks(user uint64) []*inspect.Network {
	var list []*inspect.Network
	for i := range t.r.Networks {
		if n := &t.r.Networks[i]; owner(t.r, n) == user && (t.only == nil || t.only[n.ID]) {
			list = append(list, n)
		}
	}
	return list
}

// owner is the user namespace under which a network is shown: its own, which for the
// caller's network is not told to an ordinary user in a namespace below.
func owner(r *inspect.Report, n *inspect.Network) uint64 {
	if r.User(n.User) != nil {
		return n.User
	}
	return 0
}

// has reports whether there is something to show in a user namespace or below.
func (t *tree) has(u *inspect.User, depth int) bool {
	if t.only == nil || len(t.networks(u.ID)) > 0 {
		return true
	}
	for i := range t.r.Users {
		if t.r.Users[i].Parent == u.ID && depth < maxDepth && t.has(&t.r.Users[i], depth+1) {
			return true
		}
	}
	return false
}

// maxDepth is how deep user namespaces can be nested (user_namespaces(7)).
const maxDepth = 33

func (t *tree) user(u *inspect.User, depth int) {
	if depth > maxDepth || !t.has(u, depth) {
		return
	}
	t.line(depth, "%s", userTitle(t.r, u))
	for _, n := range t.networks(u.ID) {
		t.network(n, depth+1)
	}
	if t.only == nil || u.ID != t.r.Self.User {
		t.visitors(u, depth+1)
	}
	for i := range t.r.Users {
		if t.r.Users[i].Parent == u.ID {
			t.user(&t.r.Users[i], depth+1)
		}
	}
}

// visitors are processes in a user namespace whose network is another one's, such as
// the command of a detached network.
func (t *tree) visitors(u *inspect.User, depth int) {
	seen := make(map[uint64]bool)
	for i := range t.r.Processes {
		p := &t.r.Processes[i]
		n := t.r.Network(p.NS.Net)
		if p.NS.User != u.ID || n == nil || seen[n.ID] || owner(t.r, n) == u.ID {
			continue
		}
		seen[n.ID] = true
		t.line(depth, "in %s", netName(t.r, n.ID))
		t.groups(n, u.ID, depth+1)
	}
}

func (t *tree) network(n *inspect.Network, depth int) {
	t.line(depth, "%s", netTitle(t.r, n))
	for i := range n.Interfaces {
		t.line(depth+1, "%s", ifLine(t.r, n, &n.Interfaces[i]))
	}
	for _, p := range n.Ports {
		t.line(depth+1, "published %s (%s)", portLine(p), p.By)
	}
	t.groups(n, owner(t.r, n), depth+1)
	inhabited := false
	for i := range t.r.Processes {
		inhabited = inhabited || t.r.Processes[i].NS.Net == n.ID
	}
	if inhabited {
		return
	}
	t.line(depth+1, "nobody in it")
	for _, p := range n.Places {
		t.line(depth+1, "%s", placeLine(p))
	}
}

// placeLine says what keeps a network that nobody lives in.
func placeLine(p inspect.Place) string {
	if p.Path != "" {
		return fmt.Sprintf("kept at %s, as process %d sees it", p.Path, p.PID)
	}
	return fmt.Sprintf("kept by process %d, descriptor %d", p.PID, p.FD)
}

func (t *tree) groups(n *inspect.Network, user uint64, depth int) {
	for _, g := range groups(t.r, n.ID, user) {
		t.line(depth, "mnt %d pid %d", g.mount, g.pid)
		shown, others := pick(g.processes)
		for _, p := range shown {
			t.line(depth+1, "%s", processLine(p))
		}
		if others > 0 {
			t.line(depth+1, "and %d more processes", others)
		}
	}
}

// pick chooses, of many processes, those that something is known of.
func pick(list []*inspect.Process) (shown []*inspect.Process, others int) {
	if len(list) <= maxShown {
		return list, 0
	}
	for _, p := range list {
		if p.Owner != nil && (p.Owner.Role != "" || len(shown) < maxShown) {
			shown = append(shown, p)
		}
	}
	for _, p := range list {
		if len(shown) >= maxShown {
			break
		}
		if p.Owner == nil {
			shown = append(shown, p)
		}
	}
	return shown, len(list) - len(shown)
}
