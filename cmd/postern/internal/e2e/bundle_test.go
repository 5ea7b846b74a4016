package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ociRuntime is a program that runs bundles.
type ociRuntime struct {
	name string
	argv []string
}

// runtimesVariable names further runtimes, separated by colons: a runc of today is
// made by "GOBIN=DIR CGO_ENABLED=1 go install github.com/opencontainers/runc@latest",
// which takes 15 seconds, gcc, and no library.
const runtimesVariable = "POSTERN_E2E_RUNTIMES"

// withoutCgroups runs a command of crun's as the user: on a host with hybrid cgroups
// Debian's crun does nothing unless it sees none.
const withoutCgroups = `mount -t tmpfs tmpfs /sys/fs/cgroup && exec setpriv --reuid "$1" --regid "$2" --clear-groups -- "$3" --cgroup-manager=disabled "${@:4}"`

// overRuntimes runs a test with every runtime.
func overRuntimes(t *testing.T, f func(t *testing.T, r ociRuntime)) {
	if !lab.subids {
		missing(t, "the user has no subordinate ids")
	}
	runtimes := []ociRuntime{
		{"runc", []string{tool(t, "runc")}},
		{"crun", []string{tool(t, "unshare"), "-m", "bash", "-c", withoutCgroups, "crun", fmt.Sprint(lab.uid), fmt.Sprint(lab.gid), tool(t, "crun")}},
	}
	further := filepath.SplitList(os.Getenv(runtimesVariable))
	if path, err := exec.LookPath("runc-new"); err == nil {
		further = append(further, path)
	}
	for n, path := range further {
		at := fmt.Sprintf("%s/further%d", lab.dir, n) // where the user may execute it
		if err := copyProgram(path, at); err != nil {
			t.Fatal(err)
		}
		runtimes = append(runtimes, ociRuntime{fmt.Sprintf("%s-%d", filepath.Base(path), n+2), []string{at}})
	}
	for _, r := range runtimes {
		t.Run(r.name, func(t *testing.T) { f(t, r) })
	}
}

// command is a call of the runtime by the account. The container's streams are the
// caller's, so they are files.
func (r ociRuntime) command(ctx context.Context, a account, args ...string) *exec.Cmd {
	argv := append(append([]string(nil), r.argv...), args...)
	cmd := a.command(ctx, argv[0], argv[1:]...)
	if len(r.argv) > 1 {
		cmd.SysProcAttr = nil // it becomes the user itself
	}
	return cmd
}

// call calls the runtime and waits for it, but not for the container.
func (r ociRuntime) call(t testing.TB, a account, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within) // also for cleaning up
	defer cancel()
	cmd := r.command(ctx, a, args...)
	said, err := os.CreateTemp(t.TempDir(), "said")
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	start := time.Now()
	err = cmd.Run()
	text, _ := os.ReadFile(said.Name())
	o := outcome{code: cmd.ProcessState.ExitCode(), out: string(text), took: time.Since(start)}
	if err != nil && o.code <= 0 {
		t.Fatalf("%s %s: %v: %s", r.name, strings.Join(args, " "), err, text)
	}
	return o
}

func (r ociRuntime) must(t testing.TB, a account, args ...string) outcome {
	t.Helper()
	o := r.call(t, a, args...)
	if o.code != 0 {
		t.Fatalf("%s %s: exit code %d: %s", r.name, strings.Join(args, " "), o.code, o.out)
	}
	return o
}

// mustCommand runs a command of the account's.
func (a account) mustCommand(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	o := finish(a.command(ctx, name, args...))
	if o.code != 0 {
		t.Fatalf("%s %s: exit code %d: %s%s", name, strings.Join(args, " "), o.code, o.out, o.err)
	}
	return o.out
}

// entrypoint is what images of servers have: it gives the data to another user and
// becomes that user.
const entrypoint = `#!/bin/sh
set -e
if [ "$1" != server ]; then exec "$@"; fi
chown -R redis:redis /data
exec setpriv --reuid redis --regid redis --clear-groups redis-server --dir /data --bind 0.0.0.0 --protected-mode no --save "" --appendonly yes
`

// redisImage makes an OCI image layout with a redis server in it and returns what
// umoci calls the image.
func redisImage(t testing.TB, a account) string {
	t.Helper()
	umoci, stage, layout := tool(t, "umoci"), a.runtime+"/stage", a.runtime+"/layout"
	var script strings.Builder
	fmt.Fprintf(&script, "set -e\nmkdir -p %[1]s/bin %[1]s/etc %[1]s/data %[1]s/tmp\ncd %[1]s\n", stage)
	for _, name := range []string{"busybox", "redis-server", "setpriv", "ping"} {
		path := tool(t, name)
		fmt.Fprintf(&script, "cp -L %s bin/\nfor l in $(ldd %s | grep -o '/[^ ]*'); do mkdir -p .${l%%/*}; cp -Ln $l .$l; done\n", path, path)
	}
	for _, name := range []string{"sh", "chown", "cat", "true", "sleep", "id"} {
		fmt.Fprintf(&script, "ln -s busybox bin/%s\n", name)
	}
	for file, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/:/bin/sh\nredis:x:999:999::/data:/bin/sh\n", "etc/group": "root:x:0:\nredis:x:999:\n", "bin/entry": entrypoint,
	} {
		fmt.Fprintf(&script, "cat >%s <<'END'\n%sEND\n", file, text)
	}
	fmt.Fprintf(&script, `chmod 755 bin/entry
u=%[1]s i=%[2]s:9
$u init --layout %[2]s
$u new --image $i
$u insert --rootless --image $i %[3]s /
$u config --image $i --config.exposedports 6379/tcp --config.entrypoint /bin/entry --config.cmd server --config.env PATH=/bin --config.label io.postern.publish=0.0.0.0:6379:6379
`, umoci, layout, stage)
	a.mustCommand(t, "sh", "-c", script.String())
	return layout + ":9"
}

// unpack makes a bundle of an image, as a user does who wants no terminal. Another
// command than the image's may be given.
func unpack(t testing.TB, a account, image, name string, command ...string) (dir string) {
	t.Helper()
	dir = a.runtime + "/" + name
	a.mustCommand(t, tool(t, "umoci"), "unpack", "--rootless", "--image", image, dir)
	editConfig(t, dir, func(config map[string]any) {
		process := config["process"].(map[string]any)
		process["terminal"] = false
		if len(command) > 0 {
			process["args"] = command
		}
	})
	return dir
}

// editConfig edits a bundle's config.json, as jq would.
func editConfig(t testing.TB, dir string, edit func(map[string]any)) {
	t.Helper()
	text, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	edit(config)
	if text, err = json.MarshalIndent(config, "", "\t"); err == nil {
		err = os.WriteFile(dir+"/config.json", text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// container is a container of a bundle.
type container struct {
	account
	runtime    ociRuntime
	id, bundle string
}

// start creates the container and starts it.
func (c *container) start(t testing.TB) {
	t.Helper()
	c.runtime.must(t, c.account, "create", "--bundle", c.bundle, c.id)
	c.runtime.must(t, c.account, "start", c.id)
}

// remove deletes the container, whatever state it is in.
func (c *container) remove(t testing.TB) {
	t.Helper()
	c.runtime.must(t, c.account, "delete", "--force", c.id)
}

// end ends the container's process by a signal and waits for its end.
func (c *container) end(t testing.TB, signal string) {
	t.Helper()
	c.runtime.must(t, c.account, "kill", c.id, signal)
	err := eventually(patience, func() error {
		var state struct{ Status string }
		o := c.runtime.must(t, c.account, "state", c.id)
		err := json.Unmarshal([]byte(o.out), &state)
		return errors.Join(err, failIf(state.Status != "stopped", "status %s", state.Status))
	})
	if err != nil {
		t.Fatalf("%s: %v", c.id, err)
	}
}

// instance is the container's, for its files.
func (c *container) instance() *inst { return &inst{account: c.account, name: c.id} }

// published is where the container's port 6379 is published, by postern ports.
func (c *container) published(t testing.TB) (addrs []string) {
	t.Helper()
	out := c.mustCommand(t, lab.dir+"/postern", "ports", "list", "--name", c.id)
	for _, m := range regexp.MustCompile(`([0-9.]+:6379) +6379/tcp`).FindAllStringSubmatch(out, -1) {
		addrs = append(addrs, m[1])
	}
	return addrs
}

// gone waits until nothing of ours is left of the container.
func (c *container) gone(t testing.TB, what string) {
	t.Helper()
	err := eventually(goneLimit, func() error {
		for _, p := range processes() {
			if strings.HasPrefix(p.command, "postern") {
				return fmt.Errorf("process %d: %s", p.pid, p.command)
			}
		}
		left, _ := filepath.Glob(c.account.runtime + "/postern/*")
		hidden, _ := filepath.Glob(c.account.runtime + "/postern/.*")
		sockets, _ := filepath.Glob(c.bundle + "/.postern/*.sock")
		left = append(append(left, hidden...), sockets...)
		return failIf(len(left) > 0, "%v", left)
	})
	if err != nil {
		t.Fatalf("left after %s: %v", what, err)
	}
}

// redis sends a command and returns the first line of the answer, or the bulk
// string that it announces.
func redis(c net.Conn, command string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err == nil && strings.HasPrefix(line, "$") && !strings.HasPrefix(line, "$-1") {
		line, err = r.ReadString('\n')
	}
	return strings.TrimSpace(line), err
}

// dialRedis waits until a server answers.
func dialRedis(t testing.TB, dial func() (net.Conn, error)) net.Conn {
	t.Helper()
	var conn net.Conn
	err := eventually(patience, func() (err error) {
		if conn, err = dial(); err != nil {
			return err
		}
		answer, err := redis(conn, "PING")
		if err = errors.Join(err, failIf(answer != "+PONG", "answer %q", answer)); err != nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func ask(t testing.TB, c net.Conn, command string) string {
	t.Helper()
	answer, err := redis(c, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

// TestBundleStory is the story of a user with an image, umoci and a runtime: three
// containers of one image, each reached on the ordinary port.
func TestBundleStory(t *testing.T) {
	overRuntimes(t, func(t *testing.T, r ociRuntime) {
		a := ordinary(t)
		image := redisImage(t, a)
		var all []*container
		seen := map[string]bool{}
		for n := range 3 {
			c := &container{account: a, runtime: r, id: fmt.Sprintf("vk-%d", n+1)}
			c.bundle = unpack(t, a, image, c.id)
			args := []string{"oci", "prepare", "--publish-exposed", "--host-ip", "auto"}
			if n == 0 {
				args = append(args, "--publish", host4+":6379:6379")
			}
			a.mustCommand(t, lab.dir+"/postern", append(args, c.bundle)...)
			c.start(t)
			t.Cleanup(func() { c.runtime.call(t, a, "delete", "--force", c.id) }) // as a rule it is gone
			all = append(all, c)
		}
		for _, c := range all {
			for _, addr := range c.published(t) {
				if seen[addr] {
					t.Errorf("%s twice", addr)
				}
				seen[addr] = true
				if strings.HasPrefix(addr, "127.") {
					c.serves(t, addr, "10.0.2.2")
				}
			}
			c.unprivileged(t)
		}
		if len(seen) != 4 || !seen[host4+":6379"] {
			t.Errorf("published: %v", seen)
		}
		conn := dialRedis(t, func() (c net.Conn, err error) {
			err = lab.remote.do(func() error { c, err = net.Dial("tcp", host4+":6379"); return err })
			return c, err
		})
		if list := ask(t, conn, "CLIENT LIST"); !strings.Contains(list, " addr="+remote4+":") {
			t.Errorf("a client of the network appears as %s", list)
		}
		conn.Close()
		all[0].again(t)
		for _, c := range all {
			c.remove(t)
		}
		all[0].gone(t, "the last delete")
	})
}

// serves checks the service at an address, and as whom it sees us.
func (c *container) serves(t testing.TB, addr, seenAs string) {
	t.Helper()
	conn := dialRedis(t, func() (net.Conn, error) { return net.Dial("tcp", addr) })
	defer conn.Close()
	if got := ask(t, conn, "SET name "+c.id); got != "+OK" {
		t.Errorf("%s: SET: %s", c.id, got)
	}
	if got := ask(t, conn, "GET name"); got != c.id {
		t.Errorf("%s answers as %s", c.id, got)
	}
	if list := ask(t, conn, "CLIENT LIST"); !strings.Contains(list, " addr="+seenAs+":") {
		t.Errorf("%s: we appear as %s", c.id, list)
	}
}

// unprivileged checks that the server has become another user, one of the caller's
// subordinate ones.
func (c *container) unprivileged(t testing.TB) {
	t.Helper()
	info, err := c.instance().info()
	if err != nil {
		t.Fatal(err)
	}
	if uid := strings.Fields(statusField(t, info.ChildPID, "Uid"))[0]; uid == "0" || uid == fmt.Sprint(lab.uid) {
		t.Errorf("%s: the server is uid %s", c.id, uid)
	}
}

// again stops the container and runs it anew, many times: the data stay, and
// nothing stands in the way.
func (c *container) again(t testing.TB) {
	t.Helper()
	times := 3
	if large() {
		times = 100
	}
	addr := c.published(t)[0]
	for n := range times {
		info, err := c.instance().info()
		if err != nil {
			t.Fatal(err)
		}
		ours := family(info.PID)
		c.end(t, []string{"TERM", "KILL"}[n%2])
		c.runtime.must(t, c.account, "delete", c.id)
		if _, err := os.Lstat(c.instance().dir()); err == nil {
			t.Fatalf("run %d: %s is left", n, c.instance().dir())
		}
		// Ports and files are free; a process may be about to end.
		if err := eventually(goneLimit, func() error { left := alive(ours); return failIf(len(left) > 0, "%v", left) }); err != nil {
			t.Fatalf("run %d: alive after delete: %v", n, err)
		}
		c.start(t)
		if got := c.published(t); got[0] != addr {
			t.Fatalf("run %d: published on %v, before on %s", n, got, addr)
		}
		conn := dialRedis(t, func() (net.Conn, error) { return net.Dial("tcp", addr) })
		if got := ask(t, conn, "GET name"); got != c.id {
			t.Fatalf("run %d: the data are %q", n, got)
		}
		conn.Close()
	}
	t.Logf("%d times stopped and run again", times)
}

// TestBundleDies: a container that dies without delete leaves nothing of ours behind,
// and neither does one whose runtime is killed.
func TestBundleDies(t *testing.T) {
	overRuntimes(t, func(t *testing.T, r ociRuntime) {
		a := ordinary(t)
		c := &container{account: a, runtime: r, id: "Dies+1"}
		c.bundle = unpack(t, a, redisImage(t, a), "bundle", "sleep", "1000")
		a.mustCommand(t, lab.dir+"/postern", "oci", "prepare", "--publish-exposed", "--host-ip", "auto", c.bundle)
		t.Cleanup(func() { c.runtime.call(t, a, "delete", "--force", c.id) }) // as a rule it is gone
		for _, kill := range []bool{true, false} {
			c.start(t)
			infos := c.mustCommand(t, lab.dir+"/postern", "ps", "--json")
			var list []struct {
				Name     string `json:"name"`
				PID      int    `json:"pid"`
				ChildPID int    `json:"child_pid"`
				Command  []string
			}
			if err := json.Unmarshal([]byte(infos), &list); err != nil || len(list) != 1 || strings.Join(list[0].Command, " ") != "oci "+c.id+" "+c.bundle {
				t.Fatalf("postern ps: %s, %v", infos, err)
			}
			awaitCommand(t, list[0].ChildPID, "sleep")
			c.mustCommand(t, lab.dir+"/postern", "exec", list[0].Name, "--", probe(), "@good", remote4, "1")
			if kill { // the engine's supervisor, for which nobody can do anything
				if err := unix.Kill(list[0].PID, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Kill(list[0].ChildPID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if !kill {
				c.gone(t, "kill -9 of the container")
			}
			c.remove(t)
			c.gone(t, "delete")
		}
	})
}

// awaitCommand waits until a process has become a command. Runtimes say that a container
// is started a moment before it has; until then nobody may enter it (PR_SET_DUMPABLE).
func awaitCommand(t testing.TB, pid int, name string) {
	t.Helper()
	err := eventually(patience, func() error {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return failIf(err != nil || strings.TrimSpace(string(comm)) != name, "process %d is %q, not %s: %v", pid, comm, name, err)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestBundleRun: run in the foreground returns when the container ends, with its exit
// code; what a bundle may not have makes it fail, with a reason, and leaves nothing.
func TestBundleRun(t *testing.T) {
	overRuntimes(t, func(t *testing.T, r ociRuntime) {
		a := ordinary(t)
		c := &container{account: a, runtime: r, id: "run"}
		c.bundle = unpack(t, a, redisImage(t, a), "bundle", "sh", "-c", "cat /etc/resolv.conf /etc/hosts; id -u; ping -c1 -W9 -n "+remote4+"; exit 7")
		postern := lab.dir + "/postern"
		prepare := func(args ...string) {
			t.Helper()
			a.mustCommand(t, postern, append(append([]string{"oci", "prepare"}, args...), c.bundle)...)
		}
		prepare()
		o := r.call(t, a, "run", "--bundle", c.bundle, c.id)
		if o.code != 7 || !strings.Contains(o.out, "nameserver 10.0.2.3\n") || !strings.Contains(o.out, "search e2e.test\n") || !strings.Contains(o.out, "10.0.2.100\tumoci-default\n") || !strings.Contains(o.out, " 1 received") {
			t.Errorf("exit code %d: %s", o.code, o.out)
		}
		c.gone(t, "run")
		start := func() time.Duration {
			var all time.Duration
			for range 10 {
				all += r.must(t, a, "run", "--bundle", c.bundle, c.id).took
			}
			return all / 10
		}
		prepare("--undo")
		editConfig(t, c.bundle, func(config map[string]any) { config["process"].(map[string]any)["args"] = []string{"true"} })
		without := start()
		prepare("--publish-exposed", "--host-ip", "auto")
		with := start()
		t.Logf("from start to end of true: %v without a network, %v with one and a port: %v more", without.Round(time.Millisecond), with.Round(time.Millisecond), (with - without).Round(time.Millisecond))

		taken, err := net.Listen("tcp", "127.0.0.1:16379")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		prepare("--publish", "127.0.0.1:16379:6379")
		o = r.call(t, a, "run", "--bundle", c.bundle, c.id)
		said, _ := os.ReadFile(c.bundle + "/.postern/error")
		if o.code == 0 || !strings.Contains(o.out+string(said), "address already in use") {
			t.Errorf("a taken port: exit code %d: %s%s", o.code, o.out, said)
		}
		r.call(t, a, "delete", "--force", c.id) // crun keeps what it could not create
		c.gone(t, "a failed run")
		if strings.Contains(string(said), "\n\n") {
			t.Errorf("said %q", said)
		}
	})
}

// TestBundleShared: two containers of one bundle at once have an address each.
func TestBundleShared(t *testing.T) {
	overRuntimes(t, func(t *testing.T, r ociRuntime) {
		a := ordinary(t)
		bundle := unpack(t, a, redisImage(t, a), "bundle", "sleep", "1000")
		a.mustCommand(t, lab.dir+"/postern", "oci", "prepare", "--publish-exposed", "--host-ip", "auto", bundle)
		one, two := &container{a, r, "one", bundle}, &container{a, r, "two", bundle}
		for _, c := range []*container{one, two} {
			c.start(t)
			defer c.remove(t)
		}
		if x, y := one.published(t), two.published(t); len(x) != 1 || len(y) != 1 || x[0] == y[0] {
			t.Errorf("published on %v and %v", x, y)
		}
	})
}
