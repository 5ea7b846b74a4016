package supervisor

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironment(t *testing.T) {
	user := []string{"A=1", "ROOTLESSKIT_STATE_DIR=/outer", "POSTERN_STATE_DIR=/outer", "ROOTLESSKIT_STATE_DIR2=x", "odd", "LISTEN_FDS=1", "A=2"}
	want := []string{
		"POSTERN_STATE_DIR=/s", "ROOTLESSKIT_STATE_DIR=/s", "ROOTLESSKIT_PARENT_EUID=7", "ROOTLESSKIT_PARENT_EGID=8",
		"A=1", "ROOTLESSKIT_STATE_DIR2=x", "odd", "A=2",
	}
	if diff := cmp.Diff(want, environment(user, "/s", 7, 8, Passed{Names: "a"})); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}
