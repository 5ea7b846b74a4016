package join

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/spawn"
)

func TestStartSeesTheNetworkOnly(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, inhabited(t, spawn.Auto, func(c *spawn.Config) { c.UTS = true }).PID)
	got := output(t, target, shell(`
		id -u; id -g
		readlink /proc/self/ns/net /proc/self/ns/user /proc/self/ns/mnt /proc/self/ns/uts
		grep CapEff /proc/self/status
		ip link 2>/dev/null || cat /proc/net/dev`))
	link := func(ns string) string {
		l, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	lines := strings.Split(got, "\n")
	if len(lines) < 7 {
		t.Fatalf("output %q", got)
	}
	if lines[0] != "0" || lines[1] != "0" {
		t.Errorf("ids %s %s, want 0 0", lines[0], lines[1])
	}
	if lines[2] == link("net") || lines[3] == link("user") {
		t.Errorf("not in the target's namespaces: %q", got)
	}
	if lines[4] != link("mnt") || lines[5] != link("uts") {
		t.Errorf("not in our mount and uts namespace: %q", got)
	}
	if strings.Contains(lines[6], "\t0000000000000000") {
		t.Errorf("no capabilities: %s", lines[6])
	}
}

func TestStartInFurtherNamespaces(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	p := inhabited(t, spawn.Auto, func(c *spawn.Config) { c.PID, c.UTS, c.IPC, c.Cgroup = true, true, true, true })
	target := mustOpen(t, p.PID)
	all := shell("echo $$")
	all.Mount, all.PID, all.UTS, all.IPC, all.Cgroup = true, true, true, true, true
	all.Pdeathsig = unix.SIGKILL
	// The first inhabitant is 1; some forks of the starting may have come before us.
	var pid int
	if _, err := fmt.Sscan(output(t, target, all), &pid); err != nil || pid < 2 || pid > 20 {
		t.Errorf("process id inside is %d, %v", pid, err)
	}
}

// With an id map that lacks 0 the program keeps its ids and gets capabilities all
// the same, which it needs to do anything in there.
func TestStartWithoutRootInside(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, rootless(t))
	got := output(t, target, shell("id -u; grep Cap /proc/self/status; cat /proc/self/uid_map"))
	if !strings.HasPrefix(got, fmt.Sprintln(os.Getuid())) {
		t.Errorf("ids: %q", got)
	}
	for _, set := range []string{"CapEff", "CapAmb", "CapPrm"} {
		if strings.Contains(got, set+":\t0000000000000000") || !strings.Contains(got, set) {
			t.Errorf("%s is empty: %s", set, got)
		}
	}
}

// rootless makes namespaces whose only id is our own, unchanged, and returns a
// process that lives there.
func rootless(t *testing.T) int {
	t.Helper()
	pid := cloned(t)
	same := func(id int) userns.Map { return userns.Map{{Inside: uint32(id), Outside: uint32(id), Count: 1}} }
	write(t, pid, "setgroups", "deny")
	write(t, pid, "uid_map", same(os.Getuid()).String())
	write(t, pid, "gid_map", same(os.Getgid()).String())
	return pid
}

func write(t *testing.T, pid int, name, text string) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, name), []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

func TestStartFailures(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, inhabited(t, spawn.Single, func(c *spawn.Config) { c.PID = true }).PID)
	for _, pidns := range []bool{false, true} {
		for _, tc := range []struct {
			cmd  Command
			want error
		}{
			{Command{Path: "/nonexistent"}, unix.ENOENT},
			{Command{Path: "/etc/passwd"}, unix.EACCES},
			{Command{Path: "/bin/true", Dir: "/nonexistent"}, unix.ENOENT},
		} {
			tc.cmd.PID = pidns
			if _, err := target.Start(context.Background(), tc.cmd); !errors.Is(err, tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%+v: %v, want %v", tc.cmd, err, tc.want)
			}
		}
	}
	noChildren(t)
	p, err := target.Start(context.Background(), Command{Path: "/bin/sh", Argv: []string{"sh", "-c", "kill -TERM $$"}, PID: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if status, err := p.Wait(); err != nil || status.Signal() != unix.SIGTERM {
		t.Errorf("status %v, %v", status, err)
	}
}

// noChildren checks that none but the inhabitant is left of what was started.
func noChildren(t *testing.T) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, task := range tasks {
		b, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		all = append(all, strings.Fields(string(b))...)
	}
	if len(all) > 1 {
		t.Errorf("children left: %v", all)
	}
}

// Whoever lives in the namespace must not be able to trace the child that visits
// it, which holds copies of all our descriptors.
func TestVisitorIsUndumpable(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	pid := visitor(t, target)
	// Its files belong to root then (proc(5)), and its memory is closed to its own
	// user, outside as well as inside.
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/mem", pid), &st); err != nil || st.Uid == uint32(os.Getuid()) {
		t.Errorf("memory belongs to %d, %v", st.Uid, err)
	}
	got := output(t, target, shell(fmt.Sprintf("ls -l /proc/%d/fd 2>&1; true", pid)))
	if !strings.Contains(got, "ermission denied") {
		t.Errorf("its descriptors are visible inside: %q", got)
	}
}

// TestStartBesideOurNetwork: a process with a user namespace of its own in our
// network namespace is entered by staying there. A network namespace that it only
// keeps, and that is ours, is not taken for one of its own.
func TestStartBesideOurNetwork(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, inhabited(t, spawn.Auto, func(c *spawn.Config) { c.HostNet = true }).PID)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(output(t, target, shell("id -u; readlink /proc/self/ns/net /proc/self/ns/user")))
	if len(got) != 3 || got[0] != "0" || got[1] != own || got[2] == user {
		t.Errorf("id, network and user namespace: %q; ours are %s and %s", got, own, user)
	}
	if err := target.UseNetNS("/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	if p, err := target.Start(context.Background(), shell("true")); err == nil {
		p.Close()
		t.Error("our own network namespace was joined with another's user namespace")
	} else if !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
}
