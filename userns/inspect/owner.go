package inspect

import (
	"path"
	"strings"
)

// raw is a process as /proc tells.
type raw struct {
	pid, inner int
	uid        uint32
	stat       stat
	words      []string
	cgroup     string
	ns         IDs
	denied     bool // its namespaces may not be read
	state      string
	owner      *Owner
}

// program is the file name of a process's program as the process says.
func (p *raw) program() string {
	if len(p.words) == 0 {
		return p.stat.comm
	}
	first, _, _ := strings.Cut(p.words[0], " ") // some write a title there
	return path.Base(strings.TrimSuffix(first, ":"))
}

// option returns the value of the first option of one of these names in a command
// line: "--name value" or "--name=value".
func option(words []string, names ...string) string {
	for i, w := range words {
		for _, name := range names {
			if v, ok := strings.CutPrefix(w, name+"="); ok && strings.HasPrefix(name, "-") {
				return v
			}
			if w == name && i+1 < len(words) {
				return words[i+1]
			}
		}
	}
	return ""
}

// scopes are the systemd scopes that container engines make: "libpod-ID.scope".
var scopes = []struct{ prefix, runtime string }{
	{"libpod-conmon-", ""}, {"libpod-", "podman"}, {"nerdctl-", "nerdctl"}, {"docker-", "docker"},
	{"cri-containerd-", "containerd"}, {"crio-", "crio"}, {"runc-", "runc"}, {"crun-", "crun"},
}

// ofCgroup recognises a container by a /proc/PID/cgroup (cgroups(7)): one line with
// version 2, one for each hierarchy with version 1.
func ofCgroup(cgroup string) *Owner {
	for line := range strings.Lines(cgroup) {
		if o := ofPath(strings.TrimSuffix(line, "\n")); o != nil {
			return o
		}
	}
	return nil
}

// ofPath recognises a container by its cgroup's path. Of nested ones the innermost
// counts.
func ofPath(cgroup string) *Owner {
	for parts := strings.Split(cgroup, "/"); len(parts) > 0; parts = parts[:len(parts)-1] {
		name, ok := strings.CutSuffix(parts[len(parts)-1], ".scope")
		if !ok {
			continue
		}
		for _, s := range scopes {
			if id, ok := strings.CutPrefix(name, s.prefix); ok {
				if s.runtime == "" || id == "" {
					return nil
				}
				return &Owner{Runtime: s.runtime, ID: Clean(id, 128)}
			}
		}
	}
	return nil
}

// machinery recognises programs that make networks for others.
func machinery(p *raw) *Owner {
	switch name := p.program(); {
	case name == "rootlesskit":
		return &Owner{Runtime: "rootlesskit", Role: "parent", Name: Clean(option(p.words, "--state-dir", "-state-dir"), 256)}
	case name == "slirp4netns" || p.stat.comm == "slirp4netns":
		return &Owner{Runtime: "slirp4netns", Role: "engine"}
	case strings.HasPrefix(name, "pasta") || strings.HasPrefix(name, "passt"):
		return &Owner{Runtime: "pasta", Role: "engine"}
	case name == "conmon":
		return &Owner{Runtime: "podman", Role: "monitor", ID: Clean(option(p.words, "-c", "--cid"), 128), Name: Clean(option(p.words, "-n", "--name"), 128)}
	case strings.HasPrefix(name, "containerd-shim"):
		return &Owner{Runtime: "containerd", Role: "monitor", ID: Clean(option(p.words, "-id"), 128)}
	case name == "postern-netns" && len(p.words) > 1:
		return &Owner{Runtime: "postern", Role: "keeper of netns", Name: Clean(p.words[1], 64)}
	case name == "postern-engine":
		return &Owner{Runtime: "postern", Role: "engine"}
	}
	return nil
}

// agentProgram is what the process calls itself that postern runs in RootlessKit's place
// where that runs its child.
const agentProgram = "postern-agent"

// byParent recognises a process by what its parent is.
func byParent(p, parent *raw) *Owner {
	if parent == nil || parent.owner == nil {
		return nil
	}
	switch o := *parent.owner; {
	case o.Runtime == "rootlesskit" && o.Role == "parent" && (len(p.words) > 1 && p.words[0] == "/proc/self/exe" || p.program() == agentProgram):
		return &Owner{Runtime: "rootlesskit", Role: "child", Name: o.Name}
	case o.Role == "monitor" && o.ID != "" && p.ns != parent.ns:
		return &Owner{Runtime: o.Runtime, ID: o.ID, Name: o.Name}
	}
	return nil
}

// better merges two recognitions of one process: a container's name and the engine
// that manages it are worth more than the runtime that started it.
func better(a, b *Owner) *Owner {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	merged := *a
	if merged.Name == "" && (a.ID == b.ID || a.ID == "") {
		merged.Name = b.Name
	}
	if merged.ID == "" {
		merged.ID = b.ID
	}
	if low(a.Runtime) && !low(b.Runtime) {
		merged.Runtime = b.Runtime
	}
	return &merged
}

// low reports whether a runtime is one that engines call.
func low(runtime string) bool {
	return runtime == "runc" || runtime == "crun" || runtime == "containerd"
}

// recognise gives every process its owner. known are the containers of state files
// and the instances, by the number of their first process; a process that has none
// of its own is of its parent's, as long as it is in the same namespaces.
func recognise(procs map[int]*raw, known map[int]Owner) {
	order := byAge(procs)
	for _, p := range order {
		p.owner = machinery(p)
	}
	for _, p := range order {
		if k, ok := known[p.pid]; ok {
			p.owner = better(&k, p.owner)
		}
		parent := procs[p.stat.parent]
		if o := byParent(p, parent); o != nil && o.Role == "child" {
			p.owner = o // whoever serves its network
		} else {
			p.owner = better(p.owner, o)
		}
		if p.owner == nil || p.owner.Role == "" {
			p.owner = better(p.owner, ofCgroup(p.cgroup))
		}
		p.owner = inherited(p, parent)
	}
}

// inherited is a process's owner, or its name, as far as its parent's is the same.
func inherited(p, parent *raw) *Owner {
	if parent == nil || parent.owner == nil || parent.owner.Role != "" {
		return p.owner
	}
	switch {
	case p.owner == nil && (p.ns.PID == parent.ns.PID || p.denied):
		return parent.owner
	case p.owner != nil && p.owner.Role == "" && p.owner.ID != "" && p.owner.ID == parent.owner.ID:
		return better(p.owner, parent.owner)
	}
	return p.owner
}

// byAge puts parents before their children.
func byAge(procs map[int]*raw) []*raw {
	var order []*raw
	done := make(map[int]bool, len(procs))
	var visit func(p *raw, depth int)
	visit = func(p *raw, depth int) {
		if p == nil || done[p.pid] || depth > len(procs) {
			return
		}
		done[p.pid] = true
		visit(procs[p.stat.parent], depth+1)
		order = append(order, p)
	}
	for _, pid := range sortedKeys(procs) {
		visit(procs[pid], 0)
	}
	return order
}
