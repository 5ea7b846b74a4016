package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/child"
	"github.com/rootless-containers/rootlesskit/v3/pkg/copyup/tmpfssymlink"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network/slirp4netns"
	"github.com/rootless-containers/rootlesskit/v3/pkg/parent"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin"
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

// kitFlags are the options of kitRole, by RootlessKit's names.
type kitFlags struct {
	*flag.FlagSet
	state, ports, slirp string
	detach, ipv6        bool
	publish             []port.Spec
}

func parseKit(args []string) (*kitFlags, error) {
	f := &kitFlags{FlagSet: flag.NewFlagSet("@kit", flag.ContinueOnError)}
	f.StringVar(&f.state, "state-dir", "", "")
	f.StringVar(&f.ports, "port-driver", "", "postern, with its network, or builtin, with slirp4netns")
	f.StringVar(&f.slirp, "slirp4netns-binary", "", "")
	f.BoolVar(&f.detach, "detach-netns", false, "")
	f.BoolVar(&f.ipv6, "ipv6", false, "")
	f.Func("p", "", func(text string) error {
		spec, err := portutil.ParsePortSpec(text)
		if err == nil {
			f.publish = append(f.publish, *spec)
		}
		return err
	})
	return f, f.Parse(args)
}

// kitRole: OPTION... COMMAND... — a program with RootlessKit's library in it, and in that
// our drivers or its own.
func kitRole(args []string) error {
	f, err := parseKit(args)
	if err != nil {
		return err
	}
	if os.Getenv(kitPipe) != "" {
		return f.child()
	}
	if err := parent.InitStateDir(f.state); err != nil {
		return err
	}
	opt := parent.Opt{
		PipeFDEnvKey: kitPipe, StateDirEnvKey: kitState, ChildUseActivationEnvKey: kitActivation,
		StateDir: f.state, DetachNetNS: f.detach, Propagation: "rprivate", SubidSource: parent.SubidSourceStatic,
		PublishPorts: f.publish,
	}
	if f.ports == "postern" {
		opt.NetworkDriver, err = rootlesskit.NewParentNetwork(rootlesskit.NetworkConfig{
			Binary: filepath.Dir(os.Args[0]) + "/postern", IPv6: f.ipv6, Log: os.Stderr,
		})
		opt.PortDriver = rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: f.state})
	} else {
		var portErr error
		opt.NetworkDriver, err = slirp4netns.NewParentDriver(os.Stderr, f.slirp, 65520, nil, "tap0", true, "", false, false, f.ipv6)
		opt.PortDriver, portErr = builtin.NewParentDriver(os.Stderr, f.state, true, "auto")
		err = errors.Join(err, portErr)
	}
	if err != nil {
		return err
	}
	return parent.Parent(opt)
}

// child is what RootlessKit's library starts the program again for.
func (f *kitFlags) child() error {
	opt := child.Opt{
		PipeFDEnvKey: kitPipe, StateDirEnvKey: kitState, ChildUseActivationEnvKey: kitActivation, RunActivationHelperEnvKey: kitHelper,
		TargetCmd: f.Args(), DetachNetNS: f.detach, Propagation: "rprivate",
		CopyUpDriver: tmpfssymlink.NewChildDriver(), CopyUpDirs: []string{"/etc"},
	}
	if f.ports == "postern" {
		opt.NetworkDriver, opt.PortDriver = rootlesskit.NewChildNetwork(), rootlesskit.NewChildDriver(rootlesskit.Config{})
	} else {
		opt.NetworkDriver, opt.PortDriver = slirp4netns.NewChildDriver(), builtin.NewChildDriver(os.Stderr)
	}
	return child.Child(opt)
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

// TestRootlessKitLibrary: a program that embeds RootlessKit v3 gets its network and its
// published ports from our drivers.
func TestRootlessKitLibrary(t *testing.T) {
	table := newDropinTable(t, "A program with RootlessKit v3's library")
	for _, c := range []struct {
		slirp, driver string
		detach        bool
	}{
		{"real", "builtin", true},
		{"postern", "postern", false},
		{"postern", "postern", true},
	} {
		name := c.driver
		if c.detach {
			name += " detached"
		}
		t.Run(name, func(t *testing.T) {
			a := ordinary(t)
			s := &rootlessKitStory{rootlessKit: newRootlessKit(t, a, "library", c.slirp, c.detach, c.driver), account: a, table: table, owner: t}
			s.tell(t)
		})
	}
}
