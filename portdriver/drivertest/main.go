package drivertest

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// The environment that tells a re-executed test binary what it is.
const (
	roleVariable    = "POSTERN_DRIVERTEST_ROLE"
	harnessVariable = "POSTERN_DRIVERTEST_HARNESS"
	argVariable     = "POSTERN_DRIVERTEST_ARG"
)

// The roles.
const (
	roleContainer = "container"
	roleDriver    = "driver"
	roleInside    = "inside"
)

// Main is to be called by TestMain with every harness that the binary's tests use.
// It returns the exit code. It runs the tests in namespaces of their own, and serves
// as the container's and the drivers' processes.
func Main(m *testing.M, harnesses ...Harness) int {
	var err error
	switch role := os.Getenv(roleVariable); role {
	case "":
		// A process of a race-detecting build otherwise lingers for a second.
		os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
		return nstest.Main(m)
	case roleContainer:
		err = runContainer()
	case roleDriver:
		err = named(harnesses, runDriver)
	case roleInside:
		err = named(harnesses, runInside)
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "drivertest: %s: %v\n", os.Getenv(roleVariable), err)
		return 1
	}
	return 0
}

// environment is ours with variables set, each of which is there only once: which of
// two would count is the reader's choice.
func environment(set ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(have string) bool {
		name, _, _ := strings.Cut(have, "=")
		return slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	})
	return append(env, set...)
}

// named runs a role of the harness that the environment names.
func named(harnesses []Harness, role func(Harness) error) error {
	name := os.Getenv(harnessVariable)
	for _, h := range harnesses {
		if h.Name == name {
			return role(h)
		}
	}
	return fmt.Errorf("no harness %q: give it to drivertest.Main", name)
}

// runInside is the process that World.StartInside starts; it ends with its input.
func runInside(h Harness) error {
	quit := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(quit)
	}()
	return h.Inside(os.Getenv(argVariable), quit)
}
