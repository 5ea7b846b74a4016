package supervisor

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTakePassed: only what is meant for the process is taken, and nothing that it has
// opened itself. Whole descriptors are the scripts' business (rootlesskit-sockets).
func TestTakePassed(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		want string // in the error, "" for none
	}{
		{env: nil},
		{env: map[string]string{"LISTEN_PID": "7"}},
		{env: map[string]string{"LISTEN_FDS": "1"}},
		{env: map[string]string{"LISTEN_FDS": "1", "LISTEN_PID": "8"}},
		{env: map[string]string{"LISTEN_FDS": "1", "LISTEN_PID": "07"}},
		{env: map[string]string{"LISTEN_FDS": "0", "LISTEN_PID": "7", "LISTEN_FDNAMES": "a"}},
		{env: map[string]string{"LISTEN_FDS": "-1", "LISTEN_PID": "7"}, want: `LISTEN_FDS is "-1", want 0 to 63`},
		{env: map[string]string{"LISTEN_FDS": "64", "LISTEN_PID": "7"}, want: `LISTEN_FDS is "64"`},
		{env: map[string]string{"LISTEN_FDS": "one", "LISTEN_PID": "7"}, want: `LISTEN_FDS is "one"`},
		{env: map[string]string{"LISTEN_FDS": "63", "LISTEN_PID": "7"}, want: "LISTEN_FDS is 63, but descriptor "},
	} {
		p, err := TakePassed(func(name string) string { return tc.env[name] }, 7)
		if len(p.Files) != 0 || (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, %v; want %q", tc.env, p.Files, err, tc.want)
		}
		if env := p.environment(); env != nil {
			t.Errorf("%v: the command is told %v of nothing", tc.env, env)
		}
	}
	p := Passed{Files: []*os.File{os.Stdin}, Names: "a:b"}
	if diff := cmp.Diff([]string{"LISTEN_FDNAMES=a:b"}, p.environment()); diff != "" {
		t.Error(diff)
	}
}
