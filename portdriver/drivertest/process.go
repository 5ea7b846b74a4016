package drivertest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

// driverOrder is for the driver's process. Exactly one field is set.
type driverOrder struct {
	Publish   *portdriver.Spec
	Unpublish *int
	// Goroutines asks for their number, which is the answer's Rule.
	Goroutines bool
}

// deviceFD is the driver process's copy of the container's device.
const deviceFD = 4

// driverProcess is the driver, seen from the suite.
type driverProcess struct{ *helper }

// startDriver starts the driver's process, and returns when the driver is ready.
func startDriver(tb testing.TB, h Harness, w World) driverProcess {
	tb.Helper()
	text, err := json.Marshal(w)
	if err != nil {
		tb.Fatal(err)
	}
	p := driverProcess{startHelper(tb, roleDriver, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, harnessVariable+"="+h.Name, argVariable+"="+string(text))
		if h.Foreign {
			cmd.Env = append(cmd.Env, "GORACE="+os.Getenv("GORACE")+" exitcode=0")
		}
	}, w.Device)}
	if p.goroutines(tb) == 0 {
		tb.Fatal("the driver's process has no goroutine")
	}
	return p
}

// runDriver is the driver's process.
func runDriver(h Harness) error {
	var w World
	if err := json.Unmarshal([]byte(os.Getenv(argVariable)), &w); err != nil {
		return err
	}
	w.harness = h.Name
	w.Device = os.NewFile(deviceFD, "device")
	d, err := h.Start(w)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	err = serveOrders(func(o driverOrder) (a answer, _ *os.File, err error) {
		switch {
		case o.Publish != nil:
			a.Rule, err = d.Publish(*o.Publish)
		case o.Unpublish != nil:
			err = d.Unpublish(*o.Unpublish)
		case o.Goroutines:
			// What only waits to be collected, as package net's pipes do, is not held.
			runtime.GC()
			runtime.GC()
			a.Rule = runtime.NumGoroutine()
		}
		return a, nil, err
	})
	if err != nil {
		return err
	}
	return d.Close()
}

// goroutines is how many the process has.
func (p driverProcess) goroutines(tb testing.TB) int {
	tb.Helper()
	a, _, err := p.call(driverOrder{Goroutines: true})
	if err != nil {
		tb.Fatalf("the driver's process: %v", err)
	}
	return a.Rule
}

// descriptors is what the process has open: what kind of thing, and how many of them.
func (p driverProcess) descriptors(tb testing.TB) map[string]int {
	tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	open := make(map[string]int)
	for _, e := range list {
		// One that is closed meanwhile does not count.
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			kind, _, _ := strings.Cut(to, ":[")
			open[kind]++
		}
	}
	return open
}

// limitDescriptors sets the process's soft limit of descriptors (prlimit(2)) and
// returns what it was.
func (p driverProcess) limitDescriptors(tb testing.TB, n uint64) (was uint64) {
	tb.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}, nil); err != nil {
		tb.Fatal(err)
	}
	return old.Cur
}
