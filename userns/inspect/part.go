package inspect

// Connected returns a network and those that veth pairs connect it with, as far as
// they lead without going through the caller's own network, which is included.
func (r *Report) Connected(id uint64) map[uint64]bool {
	seen := map[uint64]bool{id: true}
	for queue := []uint64{id}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == r.Self.Net && queue[0] != id {
			continue
		}
		for _, next := range r.neighbours(queue[0]) {
			if !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	return seen
}

// neighbours are the networks of an interface's other ends.
func (r *Report) neighbours(id uint64) (list []uint64) {
	for i := range r.Networks {
		n := &r.Networks[i]
		for _, l := range n.Interfaces {
			switch {
			case l.Peer == nil || l.Peer.Net == 0:
			case n.ID == id:
				list = append(list, l.Peer.Net)
			case l.Peer.Net == id:
				list = append(list, n.ID)
			}
		}
	}
	return list
}

// Only returns a report of some networks, the processes in them and one more, and the
// user namespaces of these with all above.
func (r *Report) Only(networks map[uint64]bool, process *Process) *Report {
	part := *r
	part.Users, part.Networks, part.Processes = []User{}, []Network{}, []Process{}
	users := make(map[uint64]bool)
	for _, n := range r.Networks {
		if networks[n.ID] {
			part.Networks = append(part.Networks, n)
			users[n.User] = true
		}
	}
	for _, p := range r.Processes {
		if process == nil && networks[p.NS.Net] || process != nil && process.PID == p.PID {
			part.Processes = append(part.Processes, p)
			users[p.NS.User] = true
		}
	}
	for range maxUserDepth {
		for _, u := range r.Users {
			if users[u.ID] {
				users[u.Parent] = true
			}
		}
	}
	for _, u := range r.Users {
		if users[u.ID] {
			part.Users = append(part.Users, u)
		}
	}
	return &part
}

// maxUserDepth is how deep user namespaces can be nested (user_namespaces(7)).
const maxUserDepth = 33
