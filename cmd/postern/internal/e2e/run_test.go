package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long something may take that has no deadline of its own;
// machines that run tests are slow and shared.
const patience = 30 * time.Second

// userEnv is the environment of a login shell of the user, with its own runtime
// directory.
func userEnv(runtimeDir string) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + lab.home, "USER=" + lab.user,
		"LANG=C.UTF-8", "SHELL=/bin/sh", "XDG_RUNTIME_DIR=" + runtimeDir, "GORACE=halt_on_error=1 atexit_sleep_ms=0",
	}
}

// account is who runs postern.
type account struct {
	uid, gid int
	runtime  string
}

// ordinary returns the user, with a runtime directory that goes with the test.
func ordinary(t testing.TB) account { return newAccount(t, lab.uid, lab.gid) }

func newAccount(t testing.TB, uid, gid int) account {
	t.Helper()
	sources.Do(func() { recordSources(t) })
	dir, err := os.MkdirTemp(lab.dir, "run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return account{uid, gid, dir}
}

// command is a program that the account runs.
func (a account) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = userEnv(a.runtime)
	cmd.Dir = "/"
	// In a single-id user namespace setgroups is barred, and there is nobody to become.
	if lab.root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
	}
	return cmd
}

func (a account) postern(ctx context.Context, args ...string) *exec.Cmd {
	return a.command(ctx, lab.dir+"/postern", args...)
}

// probe is the test program's path, for commands inside a container.
func probe() string { return lab.dir + "/probe" }

// outcome is how a program ended.
type outcome struct {
	code     int
	out, err string
	took     time.Duration
}

func finish(cmd *exec.Cmd) outcome {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	o := outcome{out: out.String(), err: errs.String(), took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		o.code = exit.ExitCode()
	case err != nil:
		o.code, o.err = -1, o.err+err.Error()
	}
	return o
}

// within bounds a program's time by the test's patience.
const within = 2 * time.Minute

// run runs a command in a network of its own.
func (a account) run(t testing.TB, flags []string, command ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	args := append(append([]string{"run"}, flags...), "--")
	return finish(a.postern(ctx, append(args, command...)...))
}

// mustRun is run for a command that succeeds; postern must have nothing to say.
func (a account) mustRun(t testing.TB, flags []string, command ...string) string {
	t.Helper()
	o := a.run(t, flags, command...)
	if o.code != 0 {
		t.Fatalf("postern run %s -- %s: exit code %d after %v\nstdout: %s\nstderr: %s",
			strings.Join(flags, " "), strings.Join(command, " "), o.code, o.took, o.out, o.err)
	}
	o.err = uncalled(o.err)
	if strings.Contains(o.err, "postern:") || strings.Contains(o.err, "level=") || strings.Contains(o.err, "DATA RACE") {
		t.Errorf("postern run %s -- %s: says on stderr: %s", strings.Join(flags, " "), strings.Join(command, " "), o.err)
	}
	return o.out
}

// tool finds a program that the test needs.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if info, err := os.Stat(dir + "/" + name); err == nil && info.Mode()&0o111 != 0 {
			return dir + "/" + name
		}
	}
	missing(t, name+" is not installed")
	return ""
}

// overKinds runs a test over both kinds of endpoint.
func overKinds(t *testing.T, f func(t *testing.T, endpoint string)) {
	for _, endpoint := range []string{"tap", "packet"} {
		t.Run(endpoint, func(t *testing.T) {
			needEndpoint(t, endpoint)
			f(t, endpoint)
		})
	}
}

// tun is why a TAP cannot be made on this machine, nil if it can. A stage of the
// machine's root has its own device (coverTUN).
var tun = sync.OnceValue(func() error {
	if lab.root {
		return nil
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	return err
})

// needEndpoint skips tests over a TAP where none can be made.
func needEndpoint(t testing.TB, endpoint string) {
	t.Helper()
	if err := tun(); endpoint == "tap" && err != nil {
		missing(t, err.Error())
	}
}

// uncalled returns what postern said without need. Where no TAP can be made it has
// to say so.
func uncalled(said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		if tun() == nil || !strings.HasPrefix(line, "postern: /dev/net/tun: ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// missing skips a test on a user's machine and fails it under CI=true.
func missing(t testing.TB, why string) {
	t.Helper()
	if inCI() {
		t.Fatalf("%s, and CI=true", why)
	}
	t.Skip(why)
}

// eventually repeats a check until it succeeds or the time is up.
func eventually(limit time.Duration, check func() error) error {
	for end := time.Now().Add(limit); ; {
		err := check()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// failIf is an error if bad.
func failIf(bad bool, format string, args ...any) error {
	if bad {
		return fmt.Errorf(format, args...)
	}
	return nil
}
