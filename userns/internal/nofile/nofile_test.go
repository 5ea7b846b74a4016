package nofile_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/postern-net/postern/userns/internal/nofile"
)

const childVariable = "POSTERN_NOFILE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		soft, hard, ok := nofile.Original()
		fmt.Print(soft, " ", hard, " ", ok)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// This is an external test: in the package itself it would make the package
// import os and lose its place in the order.
//
// The order of initialisation is what the package stands on: a program started
// with a soft limit of its own must find that one, not the one that Go raised.
func TestOriginalIsTheLimitBeforeGoRaisedIt(t *testing.T) {
	for _, tc := range []struct {
		soft, hard uint64
		ok         bool
	}{{123, 456, true}, {456, 456, false}} {
		// The shell sets the limit, since Setrlimit would lower our own for good.
		script := fmt.Sprintf("ulimit -Sn %d && ulimit -Hn %d && exec %s", tc.soft, tc.hard, os.Args[0])
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Env = append(os.Environ(), childVariable+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if want := fmt.Sprint(tc.soft, " ", tc.hard, " ", tc.ok); string(out) != want {
			t.Errorf("limits %q, want %q", out, want)
		}
	}
}
