package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// goneWithin is the promise for the end of everything after the end of something;
// it is logged. goneLimit is what a slow machine may take.
const (
	goneWithin = 500 * time.Millisecond
	goneLimit  = patience
)

func parseUint32(t testing.TB, text string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// awaitGone waits until processes and a directory are gone, and logs the time.
func awaitGone(t *testing.T, what string, list []process, dir string) {
	t.Helper()
	start := time.Now()
	err := eventually(goneLimit, func() error {
		if left := alive(list); len(left) > 0 {
			return fmt.Errorf("%d processes live on: %v", len(left), left)
		}
		if dir == "" {
			return nil
		}
		_, err := os.Lstat(dir)
		return failIf(err == nil, "%s is left", dir)
	})
	took := time.Since(start)
	if err != nil {
		t.Fatalf("%v after %s: %v", took, what, err)
	}
	t.Logf("%d processes gone %v after %s (promised: %v)", len(list), took.Round(time.Millisecond), what, goneWithin)
}

// members returns the pids of an instance's processes.
func members(t *testing.T, i *inst) (supervisor, engine, agent int, all []process) {
	t.Helper()
	info, err := i.info()
	if err != nil {
		t.Fatal(err)
	}
	s := i.mustStatus(t)
	all = family(info.PID)
	// supervisor, engine, agent, the command and its orphan
	if len(all) < 5 || s.EnginePID == 0 || info.ChildPID == 0 {
		t.Fatalf("instance.json %+v, engine %d, processes %v", info, s.EnginePID, all)
	}
	return info.PID, s.EnginePID, info.ChildPID, all
}

// kill kills one process outright. Zero and one mean others to the kernel.
func kill(t testing.TB, pid int) {
	t.Helper()
	if pid < 2 {
		t.Fatalf("no process to kill: %d", pid)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// orphaning is a command that has a child which leaves its session.
var orphaning = []string{"sh", "-c", "(setsid sleep 1000 &) ; cat"}

// TestKilledOutright: whichever process is killed, all is over, or mended (L1, L4, L6).
func TestKilledOutright(t *testing.T) {
	for _, endpoint := range []string{"tap", "packet"} {
		for _, victim := range []string{"supervisor", "agent", "command"} {
			t.Run(endpoint+"/"+victim, func(t *testing.T) {
				needEndpoint(t, endpoint)
				killOne(t, endpoint, victim)
			})
		}
		t.Run(endpoint+"/engine", func(t *testing.T) {
			needEndpoint(t, endpoint)
			killEngine(t, endpoint)
		})
	}
}

func orphaned(t *testing.T, a account, endpoint string) *inst {
	t.Helper()
	i := a.begin(t, "kill", append([]string{"run", "--name", "kill", "--endpoint", endpoint, "--"}, orphaning...)...)
	info, _ := i.info()
	err := eventually(patience, func() error {
		all := family(info.PID)
		return failIf(find(all, "cat") == nil || find(all, "sleep 1000") == nil, "the command has not started: %v", all)
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func killOne(t *testing.T, endpoint, victim string) {
	i := orphaned(t, ordinary(t), endpoint)
	supervisor, _, agent, all := members(t, i)
	// The command is cat's parent, the shell: its orphan must go too.
	pid := map[string]int{"supervisor": supervisor, "agent": agent, "command": find(all, "cat").parent}[victim]
	dir := i.dir()
	i.mayTalk = victim == "agent"
	if victim == "supervisor" {
		dir = "" // nobody is left who could; see below
	}
	kill(t, pid)
	awaitGone(t, "kill -9 of the "+victim, all, dir)
	_ = i.wait(t)
	// What was left is no obstacle, and goes.
	if out := i.mustPS(t); strings.Contains(out, "kill") {
		t.Errorf("postern ps lists it still:\n%s", out)
	}
	if _, err := os.Lstat(i.dir()); err == nil {
		t.Errorf("%s is left after postern ps", i.dir())
	}
	i.mustRun(t, []string{"--name", "kill", "--endpoint", endpoint}, "true")
}

func (i *inst) mustPS(t testing.TB) string {
	t.Helper()
	o := finish(i.postern(t.Context(), "ps"))
	if o.code != 0 {
		t.Fatalf("postern ps: %s", o.err)
	}
	return o.out
}

// killEngine: the engine is replaced, the container keeps its interface and its
// addresses, and a new flow works.
func killEngine(t *testing.T, endpoint string) {
	i := orphaned(t, ordinary(t), endpoint)
	_, engine, _, _ := members(t, i)
	i.mayTalk = true
	look := []string{probe(), "@interface", "tap0"}
	before := i.mustExec(t, look...)
	for n := 1; n <= 3; n++ {
		start := time.Now()
		kill(t, engine)
		err := eventually(patience, func() error {
			s, err := i.status()
			if err == nil && s.EnginePID != engine && s.EngineReady {
				engine = s.EnginePID
				return failIf(s.EngineRestarts != n, "%d restarts, want %d", s.EngineRestarts, n)
			}
			return fmt.Errorf("not replaced: %+v, %w", s, err)
		})
		if err != nil {
			t.Fatal(err)
		}
		ready := time.Since(start)
		i.mustExec(t, probe(), "@good", remote4, "1")
		t.Logf("engine replaced after %v, new flow done after %v", ready.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	}
	after := i.mustExec(t, look...)
	if before != after {
		t.Errorf("the interface changed: before\n%s\nafter\n%s", before, after)
	}
}

// TestOldFlowIsReset: a flow through an engine that died ends in time.
func TestOldFlowIsReset(t *testing.T) {
	overKinds(t, func(t *testing.T, endpoint string) {
		i := ordinary(t).start(t, "old", "--endpoint", endpoint)
		i.mayTalk = true
		// It writes for ever; the echo server never ends first.
		flow := i.stand(t, "@stubborn", remote4)
		start := time.Now()
		kill(t, i.mustStatus(t).EnginePID)
		end := flow.finish(t)
		t.Logf("after %v: %s", time.Since(start).Round(time.Millisecond), end)
		if !strings.Contains(end, "reset") && !strings.Contains(end, "broken pipe") {
			t.Errorf("the flow ended with %q, want a reset", end)
		}
	})
}

// TestOneNameOneWinner: of a hundred starts at once with one name, one wins (L7).
func TestOneNameOneWinner(t *testing.T) {
	const starts = 100
	a := ordinary(t)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	hold, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	results := make(chan outcome, starts)
	begin := time.Now()
	for range starts {
		cmd := a.postern(ctx, "run", "--name", "one", "--", "cat")
		cmd.Stdin = hold
		go func() { results <- finish(cmd) }()
	}
	lost := 0
	for lost < starts-1 {
		o := <-results
		if o.code != 125 || !strings.Contains(o.err, "an instance of this name is running") {
			t.Fatalf("loser %d: exit code %d: %s", lost, o.code, o.err)
		}
		lost++
	}
	t.Logf("%d starts refused within %v", lost, time.Since(begin).Round(time.Millisecond))
	if out := finish(a.postern(ctx, "exec", "one", "--", probe(), "@good", remote4, "3")); out.code != 0 {
		t.Errorf("the winner is harmed: %s", out.err)
	}
	_ = release.Close()
	if o := <-results; o.code != 0 {
		t.Errorf("the winner: exit code %d: %s", o.code, o.err)
	}
}

// TestInterfaceDeleted: a container root who deletes the interface harms itself
// only: the control socket answers all through, and the interface comes back (L3).
func TestInterfaceDeleted(t *testing.T) {
	ipTool := tool(t, "ip")
	overKinds(t, func(t *testing.T, endpoint string) {
		i := ordinary(t).start(t, "del", "--endpoint", endpoint)
		i.mayTalk = true
		for range 3 {
			i.mustExec(t, ipTool, "link", "del", "tap0")
			start := time.Now()
			err := eventually(patience, func() error {
				i.mustStatus(t)
				o := i.exec(t, probe(), "@good", remote4, "1")
				return failIf(o.code != 0, "%s", o.err)
			})
			if err != nil {
				t.Fatalf("the network does not come back: %v\npostern said: %s", err, i.stderr)
			}
			t.Logf("back after %v", time.Since(start).Round(time.Millisecond))
		}
		i.mustExec(t, ipTool, "link", "set", "tap0", "down")
		i.mustStatus(t)
		i.mustExec(t, ipTool, "link", "set", "tap0", "name", "renamed0")
		i.mustStatus(t)
		lines := strings.Count(i.stderr.String(), "\n")
		if lines > 20 {
			t.Errorf("postern said %d lines: %s", lines, i.stderr)
		}
	})
}

// TestEndOfCommand: the end of the command ends all that it left (L1).
func TestEndOfCommand(t *testing.T) {
	overKinds(t, func(t *testing.T, endpoint string) {
		i := orphaned(t, ordinary(t), endpoint)
		_, _, _, all := members(t, i)
		_ = i.stdin.Close()
		awaitGone(t, "the end of the command", all, i.dir())
	})
}

// TestStartTime logs what a start and its end take; there is no pass mark here.
func TestStartTime(t *testing.T) {
	overKinds(t, func(t *testing.T, endpoint string) {
		a := ordinary(t)
		var all []time.Duration
		for range 20 {
			o := a.run(t, []string{"--endpoint", endpoint}, "true")
			if o.code != 0 || o.err != "" {
				t.Fatalf("exit code %d: %s", o.code, o.err)
			}
			all = append(all, o.took)
		}
		t.Logf("postern run --endpoint %s -- true: median %v", endpoint, median(all).Round(time.Millisecond))
	})
}

// TestMemory logs the memory of an idle instance.
func TestMemory(t *testing.T) {
	i := ordinary(t).start(t, "idle")
	supervisor, engine, agent := 0, 0, 0
	info, err := i.info()
	if err != nil {
		t.Fatal(err)
	}
	supervisor, engine, agent = info.PID, i.mustStatus(t).EnginePID, info.ChildPID
	total := 0
	for name, pid := range map[string]int{"supervisor": supervisor, "engine": engine, "agent": agent} {
		kib := pss(t, pid)
		t.Logf("%s: %d KiB PSS", name, kib)
		total += kib
	}
	t.Logf("together: %.1f MiB", float64(total)/1024)
}

// pss is a process's proportional set size in KiB, 0 if nobody may know.
func pss(t testing.TB, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Logf("memory of %d: %v", pid, err)
		return 0
	}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}
