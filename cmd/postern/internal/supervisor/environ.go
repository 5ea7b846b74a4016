package supervisor

import (
	"slices"
	"strconv"
	"strings"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/portdriver/activation"
)

// environment is the command's: the user's, and before it what tells programs of
// their instance. The names of RootlessKit are those that rootlessctl, Docker and
// BuildKit look for. Values of an outer instance give way, and what told us of
// inherited listeners is for us only: the command learns of those that it is passed.
func environment(user []string, stateDir string, euid, egid int, passed Passed) []string {
	own := append(passed.environment(),
		instance.StateVariable+"="+stateDir,
		"ROOTLESSKIT_STATE_DIR="+stateDir,
		"ROOTLESSKIT_PARENT_EUID="+strconv.Itoa(euid),
		"ROOTLESSKIT_PARENT_EGID="+strconv.Itoa(egid),
	)
	env := slices.Clone(own)
	for _, entry := range user {
		name, _, _ := strings.Cut(entry, "=")
		if slices.Contains(activation.Variables, name) {
			continue
		}
		if !slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, name+"=") }) {
			env = append(env, entry)
		}
	}
	return env
}
