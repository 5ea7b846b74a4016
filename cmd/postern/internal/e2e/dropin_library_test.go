package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/child"
	"github.com/rootless-containers/rootlesskit/v3/pkg/copyup/tmpfssymlink"
	"github.com/rootless-containers/rootlesskit/v3/pkg/parent"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/portutil"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/rootlesskit"
)

// Variables by which RootlessKit's parent speaks to its child.
const (
	kitPipe       = "POSTERN_E2E_KIT_PIPE"
	kitState      = "ROOTLESSKIT_STATE_DIR"
	kitActivation = "POSTERN_E2E_KIT_ACTIVATION"
	kitHelper     = "POSTERN_E2E_KIT_HELPER"
)

// kitRole: STATE detached|joined PORT COMMAND... — a program with RootlessKit's library in
// it, and our drivers in that.
func kitRole(args []string) error {
	if len(args) < 4 {
		return errors.New("want STATE detached|joined PORT COMMAND...")
	}
	detach := args[1] == "detached"
	if os.Getenv(kitPipe) != "" {
		return child.Child(child.Opt{
			PipeFDEnvKey: kitPipe, StateDirEnvKey: kitState, ChildUseActivationEnvKey: kitActivation, RunActivationHelperEnvKey: kitHelper,
			TargetCmd: args[3:], DetachNetNS: detach, Propagation: "rprivate",
			CopyUpDriver: tmpfssymlink.NewChildDriver(), CopyUpDirs: []string{"/etc"},
			NetworkDriver: rootlesskit.NewChildNetwork(),
			PortDriver:    rootlesskit.NewChildDriver(rootlesskit.Config{}),
		})
	}
	spec, err := portutil.ParsePortSpec(args[2])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(args[0], 0o700); err != nil {
		return err
	}
	network, err := rootlesskit.NewParentNetwork(rootlesskit.NetworkConfig{Binary: os.Getenv("POSTERN"), IPv6: true, Log: os.Stderr})
	if err != nil {
		return err
	}
	return parent.Parent(parent.Opt{
		PipeFDEnvKey: kitPipe, StateDirEnvKey: kitState, ChildUseActivationEnvKey: kitActivation,
		StateDir: args[0], DetachNetNS: detach, Propagation: "rprivate", SubidSource: parent.SubidSourceStatic,
		NetworkDriver: network, PortDriver: rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: args[0]}),
		PublishPorts: []port.Spec{*spec},
	})
}

// kitUnshare is what RootlessKit's library executes its own program as, to make a
// detached network; the program is expected to be unshare(1) then.
const kitUnshare = "unshare"

func unshareForKit() int {
	path, err := exec.LookPath(kitUnshare)
	if err == nil {
		err = unix.Exec(path, os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, kitUnshare+":", err)
	return 1
}

// kitInside is what runs in the child: what it reaches, then a server until its input
// ends. In a detached network everything but the shell is put into it.
const kitInside = `set -e
IN=$1; PROBE=$2; shift 2
$IN $PROBE @fetch "$@"
grep ^nameserver $ROOTLESSKIT_STATE_DIR/resolv.conf
exec $IN $PROBE @witness tcp4,0.0.0.0:80`

// TestRootlessKitLibrary: a program that embeds RootlessKit v3 gets its network and its
// published ports from our drivers.
func TestRootlessKitLibrary(t *testing.T) {
	if !lab.root || !lab.subids {
		missing(t, "RootlessKit needs subordinate ids")
	}
	for _, kind := range []string{"joined", "detached"} {
		t.Run(kind, func(t *testing.T) {
			a := ordinary(t)
			state := a.runtime + "/kit"
			in, names := "", url("web.e2e.test")
			if kind == "detached" {
				// The files of the command are the host's.
				in, names = tool(t, "nsenter")+" --net="+state+"/netns", url(remote4)
			}
			cmd := a.command(t.Context(), probe(), "@kit", state, kind, "0.0.0.0:18080:80/tcp",
				"sh", "-c", kitInside, "sh", in, probe(), url(remote4), url(remote6), names)
			cmd.Env = append(cmd.Env, "POSTERN="+lab.dir+"/postern")
			said, end := untilReady(t, cmd)
			want := strings.Repeat(greeting+"\n", 3) + "nameserver 10.0.2.3\nnameserver fd00::3\nready\n"
			if said != want {
				t.Errorf("inside: %q, want %q", said, want)
			}
			c := client{ns: lab.remote}
			if got := c.mustAsk(t, "tcp", host4+":18080").seen.Addr(); got != netip.MustParseAddr(remote4) {
				t.Errorf("the server saw %s, want %s", got, remote4)
			}
			if text := kitInfo(t, state); !strings.Contains(text, `"driver":"postern"`) || !strings.Contains(text, `"childIP":"10.0.2.100"`) {
				t.Errorf("GET /v1/info: %s", text)
			}
			running := family(cmd.Process.Pid)
			end()
			if err := eventually(patience, func() error {
				left := alive(running)
				return failIf(len(left) > 0, "%v", left)
			}); err != nil {
				t.Errorf("left behind: %v", err)
			}
		})
	}
}

// kitInfo is GET /v1/info of RootlessKit's socket.
func kitInfo(t *testing.T, state string) string {
	t.Helper()
	status, answer, err := controlAt(t, state+"/api.sock").call(http.MethodGet, "/v1/info", nil)
	if err != nil || status != http.StatusOK {
		t.Fatalf("GET /v1/info: status %d, %v", status, err)
	}
	return string(answer)
}
