package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// inspect compares what postern inspect tells its user with the kernel's own numbers.
func (s *containerdStory) inspect(t *testing.T) string {
	task := s.task(t, "web")
	text := finish(s.user.postern(t.Context(), "inspect", "--json"))
	var seen seen
	if err := json.Unmarshal([]byte(text.out), &seen); err != nil {
		t.Fatalf("%v: %s%s", err, text.out, text.err)
	}
	outer, inner := networkOf(t, s.running.child()), networkOf(t, task)
	if s.detach {
		outer = networkFile(t, fmt.Sprintf("/proc/%d/root%s/netns", s.running.child(), s.running.state))
	}
	for _, problem := range s.explained(&seen, task, outer, inner) {
		t.Error(problem)
	}
	tree := finish(s.user.postern(t.Context(), "inspect"))
	five := finish(s.user.postern(t.Context(), "inspect", strconv.Itoa(task)))
	for _, want := range []string{"containerd", "nginx: master process", "nerdctl0 bridge 10.4.0.1/24", "eth0 veth 10.4.0.", "veth, port of nerdctl0 <-> eth0 in net " + fmt.Sprint(inner)} {
		if tree.code != 0 || !strings.Contains(tree.out, want) {
			t.Errorf("the tree lacks %q", want)
		}
	}
	for _, want := range []string{"nginx", "eth0 <-> veth", fmt.Sprint("in net ", outer), "8080"} {
		if five.code != 0 || strings.Count(five.out, "\n") != 5 || !strings.Contains(five.out, want) {
			t.Errorf("of process %d: no %q", task, want)
		}
	}
	t.Logf("\n%s%s\n%s%s", tree.out, tree.err, five.out, five.err)
	return ""
}

// task returns the process of a container.
func (s *containerdStory) task(t *testing.T, id string) int {
	t.Helper()
	for line := range strings.Lines(s.mustCtr(t, "task", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			if pid, err := strconv.Atoi(f[1]); err == nil {
				return pid
			}
		}
	}
	t.Fatalf("container %s has no process", id)
	return 0
}

// networkOf returns the number of a process's network namespace, as root sees it.
func networkOf(t *testing.T, pid int) uint64 {
	t.Helper()
	return networkFile(t, fmt.Sprintf("/proc/%d/ns/net", pid))
}

func networkFile(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// explained looks for both networks, what connects them, who is in them, and what serves
// the outer one.
func (s *containerdStory) explained(seen *seen, task int, outer, inner uint64) (problems []string) {
	found := map[string]bool{}
	for _, n := range seen.Networks {
		for _, l := range n.Interfaces {
			switch {
			case n.ID == outer && l.Name == "nerdctl0":
				found["the bridge in the outer network"] = l.Kind == "bridge"
			case n.ID == outer && l.Kind == "veth":
				found["the outer end"] = l.Bridge == "nerdctl0" && l.Peer != nil && l.Peer.Net == inner && l.Peer.Name == "eth0"
			case n.ID == outer && l.Name == "tap0":
				found["the engine"] = l.Engine != nil && strings.HasPrefix(l.Engine.Kind, s.engine())
			case n.ID == inner && l.Name == "eth0":
				found["the inner end"] = l.Kind == "veth" && l.Peer != nil && l.Peer.Net == outer && strings.HasPrefix(l.Peer.Name, "veth")
			}
		}
		switch n.ID {
		case outer:
			found["the outer network's name"] = slices.ContainsFunc(n.Names, func(name string) bool { return strings.Contains(name, "containerd-rootless") })
			for _, p := range n.Ports {
				found["the published port"] = found["the published port"] || strings.Contains(p.Rule, "127.0.0.1:8080")
			}
		case inner:
			found["the container's name"] = slices.ContainsFunc(n.Names, func(name string) bool { return strings.Contains(name, "container web") })
		}
	}
	for _, p := range seen.Processes {
		found["the container's process"] = found["the container's process"] || p.PID == task && p.NS.Net == inner
	}
	for _, want := range []string{"the bridge in the outer network", "the outer end", "the inner end", "the engine", "the outer network's name",
		"the container's name", "the published port", "the container's process"} {
		if !found[want] {
			problems = append(problems, want+" is missing or not as it should be")
		}
	}
	return problems
}

// engine is what serves the network, by inspect's name.
func (s *containerdStory) engine() string {
	if s.ours {
		return "postern"
	}
	return "slirp4netns"
}
