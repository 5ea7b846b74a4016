package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy finds where the cgroups of version 2 are and may be made.
func hierarchy(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(dir + "/cgroup.controllers"); err == nil {
			return dir
		}
	}
	noCgroups(t, "no cgroups of version 2")
	return ""
}

func noCgroups(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true", why)
	}
	t.Skip(why)
}

// words reads a file of a cgroup.
func words(t *testing.T, dir, file string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

func write(dir, file, text string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(text), 0)
}

// delegatedCgroup reports whether the tests' own cgroup is theirs to change, as a
// desktop's are, which have their user's programs in them.
func delegatedCgroup() bool {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			if ok && unix.Access(filepath.Join(root, path, "cgroup.procs"), unix.W_OK) == nil {
				return true
			}
		}
	}
	return false
}

// delegated makes a cgroup that the user may change, as systemd makes one for
// Delegate=yes, with one controller at least.
func delegated(t *testing.T, uid, gid int) string {
	t.Helper()
	root := hierarchy(t)
	if all := words(t, root, "cgroup.controllers"); len(all) > 0 && len(words(t, root, "cgroup.subtree_control")) == 0 {
		if err := write(root, "cgroup.subtree_control", "+"+all[0]); err != nil {
			noCgroups(t, err.Error())
		}
		t.Cleanup(func() { _ = write(root, "cgroup.subtree_control", "-"+all[0]) })
	}
	dir, err := os.MkdirTemp(root, "postern-test")
	if err != nil {
		noCgroups(t, err.Error())
	}
	t.Cleanup(func() { removeCgroups(t, dir) })
	err = os.Chmod(dir, 0o755)
	for _, name := range []string{".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		err = errors.Join(err, os.Chown(filepath.Join(dir, name), uid, gid))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// removeCgroups removes a tree once its processes have ended.
func removeCgroups(t *testing.T, dir string) {
	below, _ := filepath.Glob(dir + "/*/cgroup.procs")
	for _, procs := range below {
		removeCgroups(t, filepath.Dir(procs))
	}
	if err := eventually(patience, func() error { return os.Remove(dir) }); err != nil {
		t.Error(err)
	}
}

// TestEvacuateCgroup2: the processes of the command's cgroup move one below, and
// the command hands controllers to cgroups that it makes.
func TestEvacuateCgroup2(t *testing.T) {
	if !asRoot(t) {
		return
	}
	uid, gid, _, err := ordinaryUser()
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"engine", "none", "host"} {
		t.Run(network, func(t *testing.T) { evacuateWith(t, network, uid, gid) })
	}
}

const inEvacuated = `
	cd /sys/fs/cgroup
	grep ^0:: /proc/self/cgroup
	mkdir mine && echo $$ >mine/cgroup.procs
	grep ^0:: /proc/self/cgroup
	echo $(cat cgroup.controllers) = $(cat cgroup.subtree_control) = $(cat mine/cgroup.controllers)
	echo left: $(cat cgroup.procs)
	echo $$ >evac/cgroup.procs
	until rmdir mine; do sleep 0.1; done
	echo ready
	read end`

func evacuateWith(t *testing.T, network string, uid, gid int) {
	group := delegated(t, uid, gid)
	controllers := strings.Join(words(t, group, "cgroup.controllers"), " ")
	at, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	runtimeDir := shortDir(t)
	if err := os.Chown(runtimeDir, uid, gid); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "run", "--net", network, "--map", "single", "--pidns", "--cgroupns",
		"--evacuate-cgroup2", "evac", "--", "sh", "-c", inEvacuated)
	cmd.Args[0] = "postern"
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtimeDir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		UseCgroupFD: true, CgroupFD: int(at.Fd()),
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	watchdog := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	if err := cmd.Start(); err != nil {
		noCgroups(t, "start in "+group+": "+err.Error())
	}
	// The supervisor and the engine are seen from here only.
	moved := eventually(patience, func() error {
		if n := len(words(t, group, "cgroup.procs")); n > 0 {
			return errors.New("processes are left in the command's root cgroup")
		}
		text, err := os.ReadFile(filepath.Join(group, "evac", "cgroup.procs"))
		if least := map[string]int{"engine": 4, "none": 3, "host": 3}[network]; err == nil && len(strings.Fields(string(text))) < least {
			err = errors.New("too few processes have moved")
		}
		return err
	})
	_ = in.Close()
	if err := errors.Join(moved, cmd.Wait()); err != nil && !strings.Contains(out.String(), "ready") {
		t.Fatalf("%v: %s%s", err, said.String(), out.String())
	}
	want := "0::/evac\n0::/mine\n" + controllers + " = " + controllers + " = " + controllers + "\nleft:\nready\n"
	if out.String() != want || moved != nil {
		t.Errorf("the command says %q, want %q; %v", out.String(), want, moved)
	}
	if strings.Contains(said.String(), "level=WARN") {
		t.Errorf("postern says %s", said.String())
	}
}
