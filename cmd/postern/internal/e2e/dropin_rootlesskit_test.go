package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rootlessKit is a program that is RootlessKit or plays it, with what makes its network.
type rootlessKit struct {
	// name says both in the tables.
	name string
	// program is the file, control that of rootlessctl. With library the program is the
	// test's own, in its role with RootlessKit's library.
	program, control string
	library          bool
	// slirp is the file that is run as slirp4netns, ours whether that is postern.
	slirp string
	ours  bool
	// personality says that the program itself is postern, old that it is Debian's.
	personality, old bool
	detach           bool
	// driver is the --port-driver.
	driver string
	flags  []string
}

// rootlessKit3Dir is where .ci/setup puts the RootlessKit that Debian has not yet.
const rootlessKit3Dir = "/usr/local/libexec/rootlesskit3"

// called puts a link to postern into the account's directory under another program's
// name: what a user does who wants postern in its place.
func (a account) called(t testing.TB, name string) string {
	t.Helper()
	dir := a.runtime + "/bin"
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	path := dir + "/" + name
	if err := os.Symlink(lab.dir+"/postern", path); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return path
}

// newRootlessKit returns a RootlessKit: "1" is Debian's, "3" today's, "library" that in a
// program of ours, "postern" our own. The slirp4netns is "real" or "postern".
func newRootlessKit(t testing.TB, a account, version, slirp string, detach bool, driver string) *rootlessKit {
	t.Helper()
	if !lab.root || !lab.subids {
		missing(t, "RootlessKit needs subordinate ids, and an ordinary user has to become what it is")
	}
	for _, name := range []string{"ip", "nsenter", "newuidmap"} {
		tool(t, name)
	}
	k := &rootlessKit{detach: detach, driver: driver, ours: slirp == "postern", flags: scriptFlags}
	k.slirp = a.called(t, "slirp4netns")
	if !k.ours {
		k.slirp = tool(t, "slirp4netns")
	}
	switch version {
	case "1":
		k.name, k.program, k.control = "RootlessKit 1.1", tool(t, "rootlesskit"), tool(t, "rootlessctl")
		k.old = true
	case "3":
		k.name, k.program, k.control = "RootlessKit 3.3", rootlessKit3Dir+"/rootlesskit", rootlessKit3Dir+"/rootlessctl"
		if _, err := os.Stat(k.program); err != nil {
			missing(t, k.program+" is not there (sh .ci/setup installs it)")
		}
	case "library":
		k.name, k.program, k.control = "program with RootlessKit 3.3's library", probe(), tool(t, "rootlessctl")
		k.library, k.flags = true, nil
	case "postern":
		k.name, k.program, k.control = "postern as rootlesskit", a.called(t, "rootlesskit"), tool(t, "rootlessctl")
		k.personality, k.ours = true, true
	}
	switch {
	case k.personality:
	case k.library && k.ours:
		k.name += " + postern's drivers"
	case k.library:
		k.name += " + its own drivers"
	case k.ours:
		k.name += " + postern"
	default:
		k.name += " + slirp4netns"
	}
	if !k.library {
		k.name += ", " + driver
	}
	if detach {
		k.name += ", detached"
	}
	return k
}

// scriptFlags are the options that dockerd-rootless.sh and containerd-rootless.sh give.
var scriptFlags = []string{"--net=slirp4netns", "--mtu=65520", "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto",
	"--disable-host-loopback", "--copy-up=/etc", "--copy-up=/run", "--propagation=rslave"}

// argv are the options, with those of the case.
func (k *rootlessKit) argv(state string, more ...string) []string {
	argv := append([]string{"--state-dir=" + state, "--port-driver=" + k.driver}, k.flags...)
	if !k.personality {
		argv = append(argv, "--slirp4netns-binary="+k.slirp)
	}
	if k.detach {
		argv = append(argv, "--detach-netns")
	}
	return append(argv, more...)
}

// invocation is the command line for the tables.
func (k *rootlessKit) invocation(more ...string) string {
	program := "rootlesskit "
	if k.library {
		program = "program "
	}
	return program + strings.Join(k.argv("STATE", more...), " ")
}

// runningKit is a RootlessKit with a command in it.
type runningKit struct {
	*rootlessKit
	account
	state  string
	cmd    *exec.Cmd
	stdin  interface{ Close() error }
	output *lockedBuffer
	ended  chan error
	// before are the processes that ran before it.
	before map[int]bool
}

// boot starts a shell script in it, that makes the file $1 when it has begun. What runs
// ends with its owner, which may be a test around t.
func (k *rootlessKit) boot(t, owner testing.TB, a account, state string, flags []string, script string, args ...string) *runningKit {
	t.Helper()
	begun := a.runtime + "/begun"
	_ = os.Remove(begun)
	argv := append(k.argv(state, flags...), "sh", "-c", script, "sh", begun)
	if k.library {
		argv = append([]string{"@kit"}, argv...)
	}
	return k.bootCommand(t, owner, a, state, a.command(context.Background(), k.program, append(argv, args...)...), begun)
}

// bootCommand starts a command that runs RootlessKit, and waits until RootlessKit says in
// its state directory who its command is, and the file that this makes is there.
func (k *rootlessKit) bootCommand(t, owner testing.TB, a account, state string, cmd *exec.Cmd, begun string) *runningKit {
	t.Helper()
	r := &runningKit{rootlessKit: k, account: a, state: state, cmd: cmd, output: &lockedBuffer{}, ended: make(chan error, 1), before: map[int]bool{}}
	for _, p := range processes() {
		r.before[p.pid] = true
	}
	r.cmd.Stdout, r.cmd.Stderr = r.output, r.output
	r.cmd.Env = append([]string{"PATH=" + a.runtime + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, r.cmd.Env[1:]...)
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdin = stdin
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.cmd.Wait() }()
	owner.Cleanup(func() { r.kill(owner) })
	if err := eventually(patience, func() error {
		select {
		case err := <-r.ended:
			r.ended <- err
			t.Fatalf("%s ended: %v\n%s", strings.Join(r.cmd.Args, " "), err, r.output)
		default:
		}
		_, err := os.Stat(begun)
		return errors.Join(err, failIf(r.child() == 0, "no child_pid in %s", state))
	}); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(r.cmd.Args, " "), err, r.output)
	}
	return r
}

// child is the process by which others enter, 0 if it is not told.
func (r *runningKit) child() int {
	b, err := os.ReadFile(r.state + "/child_pid")
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// enter is a command in the user and mount namespace of the command, and in the network
// that was made for it, wherever the command itself is.
func (r *runningKit) enter(ctx context.Context, command ...string) *exec.Cmd {
	pid := strconv.Itoa(r.child())
	network := "-n"
	if r.detach {
		network = "--net=/proc/" + pid + "/root" + r.state + "/netns"
	}
	return r.nsenter(ctx, command, network)
}

// beside is a command in the same namespaces as the command, by the way that nerdctl
// takes: a detached network is left alone.
func (r *runningKit) beside(ctx context.Context, command ...string) *exec.Cmd {
	if r.detach {
		return r.nsenter(ctx, command)
	}
	return r.nsenter(ctx, command, "-n")
}

func (r *runningKit) nsenter(ctx context.Context, command []string, network ...string) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(r.child()), "-U", "--preserve-credentials", "-m"}, network...)
	return r.command(ctx, "/usr/bin/nsenter", append(append(args, "--"), command...)...)
}

// inside runs a command by enter.
func (r *runningKit) inside(t testing.TB, command ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return finish(r.enter(ctx, command...))
}

func (r *runningKit) mustInside(t testing.TB, command ...string) string {
	t.Helper()
	o := r.inside(t, command...)
	if o.code != 0 {
		t.Fatalf("inside %s: %s: exit code %d\n%s%s\nit says: %s", r.name, strings.Join(command, " "), o.code, o.out, o.err, r.output)
	}
	return o.out
}

// witness runs a witness inside until the test ends.
func (r *runningKit) witness(t testing.TB, listeners ...string) (end func()) {
	t.Helper()
	_, end = awaitReady(t, r.enter(context.Background(), append([]string{probe(), "@witness"}, listeners...)...))
	return end
}

// ctl runs rootlessctl.
func (r *runningKit) ctl(t testing.TB, args ...string) string {
	t.Helper()
	return r.mustCommand(t, r.control, append([]string{"--socket", r.state + "/api.sock"}, args...)...)
}

// stop ends the command by the end of its input, or the program by a signal, and looks
// for what is left: processes, the state directory's files, mounts and interfaces.
func (r *runningKit) stop(t testing.TB, signal unix.Signal) {
	t.Helper()
	if all := r.processes(); len(all) < 3 { // itself, its child, the command
		t.Errorf("only %v run", all)
	}
	if signal == 0 {
		_ = r.stdin.Close()
	} else if err := r.cmd.Process.Signal(signal); err != nil {
		t.Errorf("signal %v: %v", signal, err)
	}
	select {
	case err := <-r.ended:
		r.ended <- err
		if signal == 0 && err != nil {
			t.Errorf("%s: %v\n%s", r.program, err, r.output)
		}
	case <-time.After(patience):
		t.Fatalf("%s does not end: %s", r.program, r.output)
	}
	r.nothingLeft(t)
}

// processes are those that have come since it was started, wherever they belong.
func (r *runningKit) processes() (list []process) {
	for _, p := range processes() {
		if !r.before[p.pid] {
			list = append(list, p)
		}
	}
	return list
}

// nothingLeft looks for what stop should have removed.
func (r *runningKit) nothingLeft(t testing.TB) {
	t.Helper()
	err := eventually(goneLimit, func() error {
		left := r.processes()
		return failIf(len(left) > 0, "processes: %v", left)
	})
	if err != nil {
		t.Errorf("left: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(r.state)) {
		t.Errorf("left: mounts below %s (%v)", r.state, err)
	}
	for dir, most := range map[string]int{r.state: 0, r.runtime + "/postern": r.instancesLeft()} {
		if files, _ := os.ReadDir(dir); len(files) > most {
			t.Errorf("left in %s: %v", dir, files)
		}
	}
}

// instancesLeft is how many directories of instances may be left: RootlessKit ends its
// slirp4netns by SIGKILL, and what that leaves goes when the next one starts.
func (r *runningKit) instancesLeft() int {
	if r.ours && !r.personality && !r.library {
		return 1
	}
	return 0
}

// killed kills the program outright, and waits until all has ended that it had started.
func (r *runningKit) killed(t testing.TB) {
	t.Helper()
	kill(t, r.cmd.Process.Pid)
	if err := eventually(goneLimit, func() error {
		left := r.processes()
		return errors.Join(failIf(len(left) > 0, "left: %v", left), r.locked())
	}); err != nil {
		t.Error(err)
	}
}

// locked says whether a process still holds the lock of a directory: the threads of a
// process that was killed end one by one.
func (r *runningKit) locked() error {
	files, _ := filepath.Glob(r.runtime + "/postern/*/lock")
	for _, file := range append(files, r.state+"/lock") {
		f, err := os.Open(file)
		if err != nil {
			continue // removed
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("lock %s: %w", file, err)
		}
	}
	return nil
}

// kill ends what runs, for a test that has failed.
func (r *runningKit) kill(t testing.TB) {
	_ = r.stdin.Close()
	_ = r.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		<-r.ended
	}
	r.ended <- nil
	for _, p := range r.processes() {
		t.Logf("ending process %d: %s", p.pid, p.command)
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
	if t.Failed() {
		t.Logf("%s said: %s", r.name, r.output)
	}
}
