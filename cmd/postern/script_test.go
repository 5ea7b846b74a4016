package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/engineproc"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

// patience is how long something may take that has no deadline of its own; the
// machines that run this are slow and shared.
const patience = 20 * time.Second

// goneWithin is the promise for the end of everything after the end of something,
// 500 ms, ten times over for slow machines; TestGoneWithin prints what it was.
const goneWithin = 5 * time.Second

func TestScripts(t *testing.T) {
	if !asUser(t) {
		return
	}
	runScripts(t, "testdata/script")
}

// TestScriptsAsRoot runs the same scripts as uid 0.
func TestScriptsAsRoot(t *testing.T) {
	if !asRoot(t) {
		return
	}
	runScripts(t, "testdata/script")
}

func runScripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup:               setupScript,
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"rc":      cmdRC,
			"running": cmdRunning,
			"killed":  cmdKilled,
			"gone":    cmdGone,
			"newns":   cmdNewNS,
			"retry":   cmdRetry,
			"empty":   cmdEmpty,
			"serve":   cmdServe,

			"freeport": cmdFreePort,
		},
	})
}

// setupScript gives each script a runtime directory with a short path.
func setupScript(e *testscript.Env) error {
	dir, err := os.MkdirTemp("/tmp", "pn")
	if err != nil {
		return err
	}
	e.Defer(func() { _ = os.RemoveAll(dir) })
	e.Setenv("XDG_RUNTIME_DIR", dir)
	e.Setenv("USER", os.Getenv("USER"))
	e.Setenv("SHELL", "/bin/sh")
	// A program under the race detector otherwise takes a second to end.
	e.Setenv("GORACE", "atexit_sleep_ms=0")
	// A mark that everything a script starts carries, for finding what is left.
	e.Setenv("MARK", filepath.Base(dir))
	return nil
}

// condition knows [subid], [root], [init], [delegated], [ipv6] and [tool:NAME]. Where
// CI=true nothing that tests need may be missing.
func condition(cond string) (bool, error) {
	name, arg, _ := strings.Cut(cond, ":")
	switch name {
	case "root":
		return os.Getuid() == 0, nil
	case "subid":
		u, err := user.Current()
		if err != nil {
			return false, err
		}
		ranges, _ := os.ReadFile("/etc/subuid")
		_, err = exec.LookPath("newuidmap")
		has := err == nil && (strings.Contains("\n"+string(ranges), "\n"+u.Username+":") || os.Getuid() == 0)
		return present("subordinate ids of "+u.Username, has)
	case "init": // process 1 is somebody else's, as it is not in some containers
		_, err := os.Readlink("/proc/1/ns/net")
		return err != nil, nil
	case "delegated":
		return delegatedCgroup(), nil
	case "ipv6":
		l, err := net.Listen("tcp6", "[::1]:0")
		if err == nil {
			err = l.Close()
		}
		return present("IPv6", err == nil)
	case "tool":
		_, err := exec.LookPath(arg)
		return present(arg, err == nil)
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

func present(what string, has bool) (bool, error) {
	if !has && os.Getenv("CI") == "true" {
		return false, fmt.Errorf("%s: missing, and CI=true", what)
	}
	return has, nil
}

// cmdRC runs a command and compares its exit code: rc 7 postern run -- sh -c 'exit 7'
func cmdRC(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: rc CODE COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// instanceOf reads the instance.json of a script's instance.
func instanceOf(ts *testscript.TestScript, name string) (instance.Info, error) {
	var i instance.Info
	b, err := os.ReadFile(filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "postern", name, "instance.json"))
	if err == nil {
		err = json.Unmarshal(b, &i)
	}
	return i, err
}

// cmdRunning waits until an instance runs, and sets $NAME_pid to its process.
func cmdRunning(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: running NAME")
	}
	var i instance.Info
	ok := eventually(patience, func() (err error) {
		i, err = instanceOf(ts, args[0])
		return err
	})
	if ok != nil {
		ts.Fatalf("instance %s does not run: %v", args[0], ok)
	}
	ts.Setenv(args[0]+"_pid", strconv.Itoa(i.ChildPID))
}

// cmdKilled sends a signal to a process of an instance:
// killed KILL supervisor|engine|agent NAME
func cmdKilled(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: killed SIGNAL supervisor|engine|agent NAME")
	}
	i, err := instanceOf(ts, args[2])
	ts.Check(err)
	pid := map[string]int{"supervisor": i.PID, "agent": i.ChildPID}[args[1]]
	if args[1] == "engine" {
		// One that has just been started may still be executing its program.
		ts.Check(eventually(patience, func() (err error) {
			pid, err = engineOf(i.PID)
			return err
		}))
	}
	if pid == 0 {
		ts.Fatalf("instance %s has no %s", args[2], args[1])
	}
	ts.Check(unix.Kill(pid, unix.SignalNum("SIG"+args[0])))
}

// engineOf finds the engine among a supervisor's children.
func engineOf(supervisor int) (int, error) {
	for _, p := range processes() {
		if p.parent == supervisor && strings.HasPrefix(p.command, engineproc.Name) {
			return p.pid, nil
		}
	}
	return 0, fmt.Errorf("process %d has no engine", supervisor)
}

// cmdGone waits until no process that carries a mark in its command line is left.
func cmdGone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: gone MARK")
	}
	err := eventually(goneWithin, func() error {
		for _, p := range processes() {
			if strings.Contains(p.command, args[0]) {
				return fmt.Errorf("process %d is left: %s", p.pid, p.command)
			}
		}
		return nil
	})
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

// cmdNewNS starts a process in new user and network namespaces, without postern,
// and sets $NAME to its pid. It ends with the script.
func cmdNewNS(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: newns NAME")
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	ts.Check(cmd.Start())
	go func() { _ = cmd.Wait() }() // reaped whenever it is killed
	ts.Defer(func() { _ = cmd.Process.Kill() })
	ts.Setenv(args[0], strconv.Itoa(cmd.Process.Pid))
}

// cmdRetry runs a command until it succeeds.
func cmdRetry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: retry COMMAND [ARG...]")
	}
	if err := eventually(patience, func() error { return ts.Exec(args[0], args[1:]...) }); err != nil {
		ts.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
}

// cmdEmpty waits until no instance's directory is left.
func cmdEmpty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: empty")
	}
	root := filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "postern")
	err := eventually(goneWithin, func() error {
		left, err := os.ReadDir(root)
		if err != nil || len(left) == 0 {
			return nil
		}
		return fmt.Errorf("%s holds %s", root, left[0].Name())
	})
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

// eventually repeats a check until it succeeds or the time is up.
func eventually(within time.Duration, check func() error) error {
	for end := time.Now().Add(within); ; {
		err := check()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// process is a line of /proc.
type process struct {
	pid, parent int
	command     string
}

// processes lists living processes; zombies have no command line.
func processes() []process {
	var all []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		command, err := os.ReadFile(dir + "/cmdline")
		stat, statErr := os.ReadFile(dir + "/stat")
		if err != nil || statErr != nil || len(command) == 0 || pid == os.Getpid() {
			continue
		}
		p := process{pid: pid, command: strings.ReplaceAll(string(command), "\x00", " ")}
		if fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(fields) > 1 {
			p.parent, _ = strconv.Atoi(fields[1])
		}
		all = append(all, p)
	}
	return all
}
