package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// podman is Debian's Podman for one ordinary user, with everything that it keeps in
// that user's runtime directory and with a certain program as its slirp4netns.
type podman struct {
	account
	// caller is what the table calls it.
	caller string
	// ours says that the program is postern.
	ours bool
	// program is the path that Podman executes.
	program string
	path    string
	env     []string
	table   *dropinTable
}

// podmanImage is the image that every container is made of: busybox.
const podmanImage = "localhost/e2e"

// podmanConf is containers.conf. Files instead of journald, systemd and shared memory:
// there is no login session, and other tests may have the same user. The host's
// control groups may be hybrid, with which only runc copes.
const podmanConf = `[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "%[1]s/t"
%[2]s
[network]
network_backend = "cni"
cni_plugin_dirs = ["/usr/lib/cni"]
network_config_dir = "%[1]s/cni"
`

// overEngines runs a test with Podman's own slirp4netns, which is the judge, and with
// postern in its place.
func overEngines(t *testing.T, f func(t *testing.T, p *podman)) {
	judge, ours := engines(t)
	t.Run("slirp4netns", func(t *testing.T) { f(t, newPodman(t, judge)) })
	t.Run("postern", func(t *testing.T) { f(t, newPodman(t, ours)) })
}

// engines returns what newPodman makes the two of.
func engines(t *testing.T) (judge, ours *podman) {
	t.Helper()
	if !lab.subids {
		missing(t, "Podman needs an ordinary user with subordinate ids, so root to become it")
	}
	path, slirp := tool(t, "podman"), tool(t, "slirp4netns")
	version := strings.Fields(finish(exec.Command(path, "--version")).out)
	slirpVersion := strings.Fields(finish(exec.Command(slirp, "--version")).out)
	if len(version) != 3 || len(slirpVersion) < 3 {
		t.Fatalf("versions are %q and %q", version, slirpVersion)
	}
	table := newDropinTable(t, "Podman "+version[2])
	return &podman{path: path, caller: "slirp4netns " + slirpVersion[2], program: slirp, table: table},
		&podman{path: path, caller: "postern", ours: true, table: table}
}

// newPodman arranges p's files and makes the image. All goes with the test.
func newPodman(t *testing.T, p *podman) *podman {
	t.Helper()
	p.account = podmanAccount(t)
	if p.ours {
		p.program = p.runtime + "/bin/slirp4netns"
		if err := errors.Join(os.Mkdir(p.runtime+"/bin", 0o755), os.Symlink(lab.dir+"/postern", p.program)); err != nil {
			t.Fatal(err)
		}
	}
	r := p.runtime
	p.env = []string{"HOME=" + r + "/home", "TMPDIR=" + r + "/tmp", "CONTAINERS_CONF=" + r + "/containers.conf",
		"CONTAINERS_STORAGE_CONF=" + r + "/storage.conf", "BUILDAH_ISOLATION=rootless"}
	p.writeConf(t, fmt.Sprintf("network_cmd_path = %q", p.program))
	// The one driver that needs no help from the kernel.
	if err := os.WriteFile(r+"/storage.conf", []byte("[storage]\ndriver = \"vfs\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.endPause(t) })
	p.mustCommand(t, "mkdir", r+"/home", r+"/tmp", r+"/cni")
	p.importImage(t, podmanImage, "busybox")
	// Podman makes files at its first run that stay.
	p.must(t, "run", "--rm", "--network", "slirp4netns", podmanImage, "true")
	return p
}

// podmanAccount returns the user with a runtime directory of a short name: Podman makes
// paths of sockets from it and a container's 64 digits, and unix(7) allows 108 bytes.
func podmanAccount(t *testing.T) account {
	t.Helper()
	sources.Do(func() { recordSources(t) })
	for n := range 100 {
		dir := fmt.Sprintf("%s/run%d", lab.dir, n)
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			err = os.Chown(dir, lab.uid, lab.gid)
		}
		if err != nil {
			t.Fatal(err)
		}
		return account{lab.uid, lab.gid, dir}
	}
	t.Fatal("no name for a runtime directory is free")
	return account{}
}

// writeConf writes containers.conf with more lines for its engine.
func (p *podman) writeConf(t *testing.T, lines string) {
	t.Helper()
	if err := os.WriteFile(p.runtime+"/containers.conf", fmt.Appendf(nil, podmanConf, p.runtime, lines), 0o644); err != nil {
		t.Fatal(err)
	}
}

// importImage makes an image of programs and the libraries that they need, busybox
// among them, under all of its names. There is no registry.
func (p *podman) importImage(t *testing.T, image string, programs ...string) {
	t.Helper()
	dir := p.runtime + "/image"
	var script strings.Builder
	fmt.Fprintf(&script, "set -e\nmkdir -p %[1]s/bin %[1]s/etc %[1]s/tmp\ncd %[1]s\necho root:x:0:0::/:/bin/sh >etc/passwd\n", dir)
	paths := []string{probe()}
	for _, name := range programs {
		paths = append(paths, tool(t, name))
		fmt.Fprintf(&script, "cp -L %s bin/\n", tool(t, name))
	}
	// A static program has none.
	fmt.Fprintf(&script, "for l in $(ldd %s | grep -o '/[^ :]*'); do case $l in *.so*) mkdir -p .${l%%/*}; cp -Ln $l .$l;; esac; done 2>/dev/null || true\n", strings.Join(paths, " "))
	fmt.Fprintf(&script, "for a in $(busybox --list); do ln -s busybox bin/$a; done\ntar -c . | %s import -q - %s\ncd /\nrm -r %s\n", p.path, image, dir)
	cmd := p.cmd(t.Context(), "sh", "-c", script.String())
	if o := finish(cmd); o.code != 0 {
		t.Fatalf("podman import: exit code %d: %s%s", o.code, o.out, o.err)
	}
}

// cmd is a program that the user runs where its Podman is configured.
func (p *podman) cmd(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := p.command(ctx, name, args...)
	cmd.Env = append(cmd.Env, p.env...)
	cmd.WaitDelay = patience // what goes on in the background holds no stream
	return cmd
}

// call calls podman.
func (p *podman) call(t testing.TB, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within) // also for cleaning up
	defer cancel()
	// That / is not shared in this mount namespace is no news.
	return finish(p.cmd(ctx, p.path, append([]string{"--log-level=error"}, args...)...))
}

// must is call where it has to succeed; it returns what podman printed.
func (p *podman) must(t testing.TB, args ...string) string {
	t.Helper()
	o := p.call(t, args...)
	if o.code != 0 {
		t.Fatalf("podman %s: exit code %d after %v\n%s%s", strings.Join(args, " "), o.code, o.took, o.out, o.err)
	}
	return strings.TrimSpace(o.out)
}

// with returns the arguments of a run with a network.
func (p *podman) with(network string, args ...string) []string {
	return append([]string{"run", "--network", network, "--volume", probe() + ":/probe:ro"}, args...)
}

// once runs a command in a container of its own and returns what it printed.
func (p *podman) once(t testing.TB, network string, command ...string) string {
	t.Helper()
	return p.must(t, append(p.with(network, "--rm", podmanImage), command...)...)
}

// serve runs a container with a witness on port 80 of TCP and UDP until the test ends.
func (p *podman) serve(t testing.TB, name, network string, flags ...string) {
	t.Helper()
	args := p.with(network, append([]string{"--detach", "--name", name}, flags...)...)
	p.must(t, append(args, podmanImage, "sh", "-c", "tail -f /dev/null | exec /probe @witness tcp,:80 udp4,0.0.0.0:80")...)
	t.Cleanup(func() { p.remove(t, name) })
}

func (p *podman) remove(t testing.TB, name string) {
	t.Helper()
	p.must(t, "rm", "--force", "--time", "0", "--ignore", name)
}

// await asks a witness until it answers.
func (c client) await(t testing.TB, network, addr string) (e evidence) {
	t.Helper()
	err := eventually(patience, func() (err error) {
		e, err = c.ask(network, addr)
		return err
	})
	if err != nil {
		t.Fatalf("ask %s %s: %v", network, addr, err)
	}
	return e
}

// pauseFile has the pid of the process that keeps Podman's user namespace.
func (p *podman) pauseFile() string { return p.runtime + "/t/pause.pid" }

// endPause ends that process; it is the last one that Podman leaves, on purpose.
func (p *podman) endPause(t *testing.T) {
	b, err := os.ReadFile(p.pauseFile())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	kill(t, pid)
	if err := os.Remove(p.pauseFile()); err != nil {
		t.Error(err)
	}
}

// hostAddress gives the host another address until the test ends.
func hostAddress(t testing.TB, addr string) {
	t.Helper()
	family, flags := "-4", ""
	if strings.Contains(addr, ":") {
		family, flags = "-6", " nodad"
	}
	if err := ip(family + " addr add " + addr + " dev eth0" + flags); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ip(family + " addr del " + addr + " dev eth0"); err != nil {
			t.Error(err)
		}
	})
}

// remoteWitness runs a witness in the remote's namespace until the test ends.
func remoteWitness(t testing.TB, listeners ...string) {
	t.Helper()
	awaitReady(t, exec.Command(tool(t, "nsenter"), append([]string{"--net=" + lab.remote.path, probe(), "@witness"}, listeners...)...))
}
