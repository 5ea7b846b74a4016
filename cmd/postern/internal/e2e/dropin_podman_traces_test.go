package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// traces is what there is of processes, files, and sockets.
type traces []string

// look lists the traces that there are now.
func (p *podman) look(t testing.TB) (all traces) {
	t.Helper()
	for _, proc := range processes() {
		all = append(all, fmt.Sprintf("process %d: %s", proc.pid, proc.command))
	}
	err := filepath.WalkDir(p.runtime, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil: // what is gone by now has left no trace
		case d.IsDir() && (path == p.runtime+"/home" || path == p.runtime+"/t/locks"):
			return fs.SkipDir // Podman adds files there for later
		case path == p.runtime+"/t/rp" || path == p.runtime+"/t/rootless-netns.lock": // here too
		case !p.ours && filepath.Ext(path) == ".net":
			// slirp4netns leaves its sockets: it cannot see them from its sandbox.
		default:
			all = append(all, "file "+path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile("/proc/self/net/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			// TCP_LISTEN and, for UDP, TCP_CLOSE: bound
			if f := strings.Fields(line); len(f) > 3 && (f[3] == "0A" || f[3] == "07" && strings.HasPrefix(file, "udp")) {
				all = append(all, "socket "+file+" "+f[1])
			}
		}
	}
	return all
}

// nothingNew waits until there is nothing that there was not before.
func (p *podman) nothingNew(t testing.TB, before traces, what string) (took time.Duration) {
	t.Helper()
	start := time.Now()
	err := eventually(goneLimit, func() error {
		left := slices.DeleteFunc(p.look(t), func(trace string) bool { return slices.Contains(before, trace) })
		return failIf(len(left) > 0, "%s", strings.Join(left, "\n"))
	})
	if err != nil {
		t.Errorf("left after %s:\n%v", what, err)
	}
	return time.Since(start).Round(time.Millisecond)
}

// mains lists the processes that Podman started as its slirp4netns.
func (p *podman) mains() (list []process) {
	for _, proc := range processes() {
		if strings.HasPrefix(proc.command, p.program+" ") {
			list = append(list, proc)
		}
	}
	return list
}

// main returns the one that there has to be.
func (p *podman) main(t testing.TB) process {
	t.Helper()
	list := p.mains()
	// A sandboxed slirp4netns has a child of the same name for a moment.
	list = slices.DeleteFunc(list, func(a process) bool {
		return slices.ContainsFunc(list, func(b process) bool { return a.parent == b.pid })
	})
	if len(list) != 1 {
		t.Fatalf("%d processes of %s: %v", len(list), p.program, list)
	}
	return list[0]
}
