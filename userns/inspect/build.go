package inspect

import (
	"slices"
	"strings"
)

// build puts what was found into a report; nothing is looked at any more.
func (c *collector) build() *Report {
	self := c.self
	r := &Report{Version: Version, UID: self.uid, Self: self.ns, Omitted: c.omitted,
		Users: []User{}, Networks: []Network{}, Processes: []Process{}}
	for _, id := range sortedKeys(c.users) {
		r.Users = append(r.Users, c.user(id))
	}
	for _, id := range sortedKeys(c.nets) {
		r.Networks = append(r.Networks, c.network(id))
	}
	c.connect(r)
	c.serve(r)
	c.processes(r)
	nameNetworks(r)
	return r
}

func (c *collector) user(id uint64) User {
	s := c.users[id]
	u := User{ID: id, Parent: s.user, Owner: s.owner, UIDMap: s.uidMap, GIDMap: s.gidMap}
	if s.err != nil {
		u.Problem = s.err.Error()
	}
	return u
}

func (c *collector) network(id uint64) Network {
	s := c.nets[id]
	n := Network{ID: id, User: s.user, Names: slices.Clone(c.names[id]), Places: s.places, Interfaces: c.links[id], Ports: c.ports[id]}
	if n.Interfaces == nil {
		n.Interfaces = []Interface{}
	}
	if s.err != nil {
		n.Problem = Clean(s.err.Error(), 256)
	}
	return n
}

// connect finds bridges and the other ends of interfaces.
func (c *collector) connect(r *Report) {
	for i := range r.Networks {
		n := &r.Networks[i]
		for j := range n.Interfaces {
			l := &n.Interfaces[j]
			if b := byIndex(n, l.master); b != nil {
				l.Bridge = b.Name
			}
			if l.link == 0 || l.link == l.Index && l.nsid < 0 {
				continue // a tunnel without a device has a link of its own number
			}
			l.Peer = &Peer{Index: l.link}
			if l.nsid < 0 {
				l.Peer.Net = n.ID
			} else {
				l.Peer.Net = c.peers[n.ID][l.nsid]
			}
			if other := r.Network(l.Peer.Net); other != nil {
				if p := byIndex(other, l.link); p != nil {
					l.Peer.Name = p.Name
				}
			}
		}
	}
}

func byIndex(n *Network, index int) *Interface {
	return find(n.Interfaces, func(l *Interface) bool { return l.Index == index && index != 0 })
}

// serve says who serves each TAP, and the packet sockets of our instances.
func (c *collector) serve(r *Report) {
	for _, h := range c.tuns {
		network := h.net
		if network == 0 {
			network = guess(r, h.name)
		}
		n := r.Network(network)
		if n == nil {
			continue
		}
		l := find(n.Interfaces, func(l *Interface) bool { return l.Name == h.name })
		if e := c.engine(h.pid); l != nil && (l.Engine == nil || c.rank(e.PID) > c.rank(l.Engine.PID)) {
			l.Engine = e
		}
	}
	for _, id := range sortedKeys(c.helped) {
		c.servePacket(r, id)
	}
}

// servePacket finds the interface whose other end is in a network that nobody lives
// in and that the instance's supervisor holds.
func (c *collector) servePacket(r *Report, id uint64) {
	n, pid := r.Network(id), c.helped[id]
	if n == nil {
		return
	}
	for i := range n.Interfaces {
		l := &n.Interfaces[i]
		if l.Kind != "veth" || l.Peer == nil || l.Peer.Net == n.ID {
			continue
		}
		far := r.Network(l.Peer.Net)
		if far == nil || c.nets[far.ID].member != 0 || !slices.ContainsFunc(far.Places, func(p Place) bool { return p.PID == pid }) {
			continue
		}
		l.Engine = c.engine(c.engineOf(pid))
		for _, name := range c.names[id] {
			far.Names = append(far.Names, "packet socket of "+name)
		}
	}
}

// engineOf is the engine among a supervisor's children, else the supervisor.
func (c *collector) engineOf(supervisor int) int {
	for _, pid := range sortedKeys(c.procs) {
		p := c.procs[pid]
		if p.stat.parent == supervisor && p.owner != nil && p.owner.Role == "engine" {
			return pid
		}
	}
	return supervisor
}

// rank prefers, of several holders of one TAP, the one that moves packets.
func (c *collector) rank(pid int) int {
	p := c.procs[pid]
	switch {
	case p == nil || p.owner == nil:
		return 0
	case p.owner.Role == "engine":
		return 2
	}
	return 1
}

func (c *collector) engine(pid int) *Engine {
	e := &Engine{PID: pid, Kind: "unknown"}
	p := c.procs[pid]
	if p == nil {
		return e
	}
	e.Net = p.ns.Net
	e.Kind = Clean(p.program(), 64)
	if p.owner != nil && p.owner.Role != "" && p.owner.Role != "parent" && p.owner.Role != "child" {
		e.Kind = p.owner.Runtime
		if p.owner.Runtime == "postern" && p.owner.Role == "supervisor" {
			e.PID = c.engineOf(pid)
		}
	}
	if own := c.engineOf(pid); p.owner != nil && p.owner.Role == "parent" && own != pid {
		e.PID, e.Kind = own, c.procs[own].owner.Runtime
	}
	return e
}

// guess finds a TAP's network by its name, if only one network has such a TAP.
func guess(r *Report, name string) uint64 {
	var only uint64
	for i := range r.Networks {
		n := &r.Networks[i]
		if find(n.Interfaces, func(l *Interface) bool { return l.Name == name && l.Kind == "tun" }) == nil {
			continue
		}
		if only != 0 {
			return 0
		}
		only = n.ID
	}
	return only
}

// processes lists the processes whose namespaces we may see.
func (c *collector) processes(r *Report) {
	for _, pid := range sortedKeys(c.procs) {
		p := c.procs[pid]
		if p.ns.Net == 0 || p.ns.User == 0 {
			if !c.oursAnyway(p) {
				r.Unreadable++
				continue
			}
		}
		q := Process{PID: pid, Parent: p.stat.parent, UID: p.uid, Inner: p.inner, NS: p.ns, Owner: p.owner,
			Command: Clean(strings.Join(p.words, " "), maxCommand)}
		if q.Command == "" {
			q.Command = "[" + Clean(p.stat.comm, 64) + "]"
		}
		if p.state != "" {
			q.Problem = "its namespaces may not be read: " + p.state
		}
		r.Processes = append(r.Processes, q)
	}
}

// oursAnyway reports whether a process is worth showing though it may not be looked
// at: it is a part of a network's machinery, such as an engine that shut itself off.
func (c *collector) oursAnyway(p *raw) bool {
	return p.owner != nil && (p.uid == c.self.uid || p.owner.Role != "")
}

// nameNetworks names each network after the containers whose first processes live
// there.
func nameNetworks(r *Report) {
	for i := range r.Processes {
		p := &r.Processes[i]
		n := r.Network(p.NS.Net)
		if n == nil || p.Owner == nil || n.ID == r.Self.Net && p.Owner.Role == "" {
			continue
		}
		if p.Owner.Role != "" && !strings.HasPrefix(p.Owner.Role, "keeper") {
			continue
		}
		name := p.Owner.String()
		switch {
		case p.Owner.Role != "":
			name = "netns " + p.Owner.Name
		case p.Owner.Runtime == "postern" && !slices.Contains(n.Names, name):
			name = "within " + name // a network that the instance's own programs made
		}
		if !slices.Contains(n.Names, name) && len(n.Names) < maxPlaces {
			n.Names = append(n.Names, name)
		}
	}
}
