// Package nstest runs a test binary in a user and network namespace of its own,
// where it may have any address and setting without touching the machine's. It
// is for tests only.
package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// marker tells the re-executed binary that it is inside.
const marker = "POSTERN_NSTEST"

// Main runs the tests inside new namespaces with the loopback device up, and
// returns the exit code for os.Exit. Where user namespaces are barred the tests
// are skipped, unless CI=true makes that a failure.
func Main(m *testing.M) int {
	if os.Getenv(marker) != "" {
		if err := LinkUp("lo"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "tests need user and network namespaces: %v\n", err)
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	if err := cmd.Wait(); err != nil {
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return code
		}
		return 1
	}
	return 0
}

// Sysctl writes a setting of the calling thread's network namespace, named by
// its path below /proc/sys.
func Sysctl(path, value string) error {
	return os.WriteFile("/proc/sys/"+path, []byte(value), 0)
}

// Namespace is another network namespace, which lives as long as the test.
type Namespace struct {
	// File refers to the namespace.
	File *os.File
	work chan func()
}

// New makes a network namespace with the loopback device up.
func New(tb testing.TB) *Namespace {
	tb.Helper()
	ns := &Namespace{work: make(chan func())}
	ready := make(chan error)
	go ns.run(ready)
	if err := <-ready; err != nil {
		tb.Fatalf("second namespace: %v", err)
	}
	tb.Cleanup(func() {
		close(ns.work)
		_ = ns.File.Close()
	})
	return ns
}

func (ns *Namespace) run(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = LinkUp("lo")
	}
	if err == nil {
		ns.File, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	}
	ready <- err
	for f := range ns.work {
		f()
	}
}

// Do runs f in the namespace and fails the test if it does. Goroutines that f
// starts are not in the namespace, sockets that it opens are.
func (ns *Namespace) Do(tb testing.TB, f func() error) {
	tb.Helper()
	done := make(chan error)
	ns.work <- func() { done <- f() }
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
}
