package inspect

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// container is an entry of a runtime's state directory.
type container struct {
	runtime, id, bundle string
	pid                 int
	start               uint64 // 0: not on record
}

// parseRunc reads runc's state.json.
func parseRunc(b []byte) (container, error) {
	var s struct {
		ID     string `json:"id"`
		PID    int    `json:"init_process_pid"`
		Start  uint64 `json:"init_process_start"`
		Config struct {
			Labels []string `json:"labels"`
		} `json:"config"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return container{}, err
	}
	k := container{runtime: "runc", id: s.ID, pid: s.PID, start: s.Start}
	for _, l := range s.Config.Labels {
		if v, ok := strings.CutPrefix(l, "bundle="); ok {
			k.bundle = v
		}
	}
	return k, nil
}

// parseCrun reads crun's status.
func parseCrun(b []byte) (container, error) {
	var s struct {
		PID    int    `json:"pid"`
		Start  uint64 `json:"process-start-time"`
		Bundle string `json:"bundle"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return container{}, err
	}
	return container{runtime: "crun", pid: s.PID, start: s.Start, bundle: s.Bundle}, nil
}

// nameIn finds what people call a container in the annotations of its config.json.
func nameIn(config []byte) (runtime, name string) {
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(config, &s) != nil {
		return "", ""
	}
	for _, k := range []struct{ key, runtime string }{
		{"nerdctl/name", "nerdctl"}, {"io.podman.annotations.name", "podman"}, {"io.kubernetes.cri.container-name", "containerd"},
	} {
		if v := s.Annotations[k.key]; v != "" {
			return k.runtime, Clean(v, 128)
		}
	}
	return "", ""
}

// readStates reads the runtimes' state directories, as every mount namespace shows
// them: RootlessKit's children have a /run of their own.
func (c *collector) readStates() {
	uid := strconv.Itoa(os.Geteuid())
	bases := []string{"/run", "/run/user/" + uid}
	if dir := c.opts.RuntimeDir; filepath.IsAbs(dir) && dir != bases[1] {
		bases = append(bases, dir)
	}
	seen := make(map[uint64]bool)
	for _, pid := range sortedKeys(c.procs) {
		p := c.procs[pid]
		if p.ns.Mount == 0 || seen[p.ns.Mount] {
			continue
		}
		seen[p.ns.Mount] = true
		for _, base := range bases {
			c.readDir(pid, base+"/runc", "state.json", parseRunc)
			c.readDir(pid, base+"/crun", "status", parseCrun)
			for _, ns := range c.entries(pid, base+"/containerd/runc") {
				c.readDir(pid, base+"/containerd/runc/"+ns, "state.json", parseRunc)
			}
		}
	}
}

// entries lists a directory inside a process's root.
func (c *collector) entries(pid int, dir string) []string {
	f, err := openInside(pid, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(maxContainers)
	if err != nil && err != io.EOF {
		return nil
	}
	return names
}

// readDir reads the containers of one state directory.
func (c *collector) readDir(pid int, dir, file string, parse func([]byte) (container, error)) {
	for _, id := range c.entries(pid, dir) {
		b, err := readInside(pid, dir+"/"+id+"/"+file)
		if err != nil {
			continue
		}
		k, err := parse(b)
		if err != nil || k.pid <= 0 {
			continue
		}
		if k.id == "" {
			k.id = id
		}
		c.container(pid, k)
	}
}

// container notes a container whose first process lives.
func (c *collector) container(pid int, k container) {
	p := c.procs[k.pid]
	if p == nil || k.start != 0 && k.start != p.stat.start {
		return // it died, and its number may be another's
	}
	o := Owner{Runtime: k.runtime, ID: Clean(k.id, 128)}
	if filepath.IsAbs(k.bundle) {
		if config, err := readInside(pid, k.bundle+"/config.json"); err == nil {
			if runtime, name := nameIn(config); runtime != "" {
				o.Runtime, o.Name = runtime, name
			}
		}
	}
	c.known[k.pid] = o
}

// findKits finds RootlessKit's state directories and names their networks.
func (c *collector) findKits() {
	for _, pid := range sortedKeys(c.procs) {
		p := c.procs[pid]
		if p.owner == nil || p.owner.Runtime != "rootlesskit" || p.owner.Role != "child" {
			continue
		}
		dir := p.owner.Name
		for _, q := range sortedKeys(c.procs) {
			if dir == "" && c.procs[q].stat.parent == pid {
				dir = environment(q, "ROOTLESSKIT_STATE_DIR")
			}
		}
		if dir = filepath.Clean(dir); !filepath.IsAbs(dir) {
			continue
		}
		c.kits[pid] = dir
		network := p.ns.Net
		for id, s := range c.nets {
			for _, place := range s.places {
				if place.Path == dir+"/netns" && c.procs[place.PID] != nil && c.procs[place.PID].ns.Mount == p.ns.Mount {
					network = id
				}
			}
		}
		c.names[network] = append([]string{"RootlessKit " + Clean(dir, 256)}, c.names[network]...)
	}
}

// askPorts asks the control sockets.
func (c *collector) askPorts(ctx context.Context) {
	if c.opts.Ports == nil {
		return
	}
	ask := func(network uint64, socket, by string) {
		// A socket that does not answer has no ports to show.
		if ports, err := c.opts.Ports(ctx, socket, by); err == nil {
			c.ports[network] = append(c.ports[network], ports...)
		}
	}
	for _, k := range c.opts.Known {
		if k.NetNS != nil && k.Socket != "" {
			if id, err := inode(k.NetNS); err == nil {
				ask(id, k.Socket, "postern")
			}
		}
	}
	for _, pid := range sortedKeys(c.kits) {
		for id, names := range c.names {
			for _, name := range names {
				if name == "RootlessKit "+Clean(c.kits[pid], 256) {
					ask(id, c.kits[pid]+"/api.sock", "rootlesskit")
				}
			}
		}
	}
}
