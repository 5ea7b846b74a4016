package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// runFlags are the flags of run only.
type runFlags struct {
	idMap       string
	copyUp      []string
	propagation string
	detach      bool
	pid, ipc    bool
	uts, cgroup bool
}

func (a *app) runCommand() *cobra.Command {
	var shared networkFlags
	var own runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [COMMAND [ARG...]]",
		Short: "Run a command in a network of its own",
		Long: `Run COMMAND (default: $SHELL) in new user, network and mount namespaces with a
working network, as root of the user namespace. Its exit code is postern's; when
it has ended, nothing that it started is left.

The command sees the interface tap0 with 10.0.2.100 and fd00::100, and its own
/etc/resolv.conf and /etc/hosts. Loopback, link-local and metadata addresses of
the host are out of its reach.

With --detach-netns COMMAND stays in the host's network and sees the host's files;
the new network is $ROOTLESSKIT_STATE_DIR/netns, for COMMAND to put containers
into, and postern exec NAME enters it.`,
		Example: `  postern run -- curl http://example.org/
  postern run --mtu 1500 --cidr6 none -- ping -c1 example.org
  postern run --allow-host-loopback=5432 -- psql -h gateway.postern.internal
  postern run --copy-up /etc --copy-up /var/lib -- sh`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := applyConfig(cmd.Flags(), shared.config); err != nil {
				return err
			}
			cfg, err := own.parse(a, &shared, args)
			if err != nil {
				return err
			}
			if a.seal() {
				a.failed(supervisor.Run(cmd.Context(), cfg))
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false) // the command's own flags are not ours
	shared.register(cmd.Flags())
	own.register(cmd)
	return cmd
}

func (f *runFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.idMap, "map", "auto", "ids of the user namespace: `MODE` auto (all subordinate ids, else one), subid or single")
	fs.StringSliceVar(&f.copyUp, "copy-up", nil, "make `DIR` a writable copy of the host's (repeatable)")
	fs.StringVar(&f.propagation, "propagation", "rprivate", "mount propagation `MODE`: rprivate or rslave")
	fs.BoolVar(&f.detach, "detach-netns", false, "leave COMMAND in the host's network, the new one at $ROOTLESSKIT_STATE_DIR/netns")
	fs.BoolVar(&f.pid, "pidns", false, "also make a PID namespace")
	fs.BoolVar(&f.ipc, "ipcns", false, "also make an IPC namespace")
	fs.BoolVar(&f.uts, "utsns", false, "also make a UTS namespace")
	fs.BoolVar(&f.cgroup, "cgroupns", false, "also make a cgroup namespace")
}

// parse checks all flags of run.
func (f *runFlags) parse(a *app, shared *networkFlags, args []string) (cfg supervisor.RunConfig, err error) {
	cfg = supervisor.RunConfig{
		Command: args, Env: a.env, CopyUp: f.copyUp, Propagation: f.propagation,
		DetachNetNS: f.detach, PIDNS: f.pid, IPCNS: f.ipc, UTSNS: f.uts, CgroupNS: f.cgroup,
	}
	if len(args) == 0 {
		cfg.Command = a.shell()
	}
	if cfg.Map, err = mapMode(f.idMap); err != nil {
		return supervisor.RunConfig{}, err
	}
	if f.propagation != "rprivate" && f.propagation != "rslave" {
		return supervisor.RunConfig{}, fmt.Errorf("--propagation %q: want rprivate or rslave", f.propagation)
	}
	for _, dir := range f.copyUp {
		if len(dir) < 2 || dir[0] != '/' {
			return supervisor.RunConfig{}, fmt.Errorf("--copy-up %q: want an absolute directory below /", dir)
		}
	}
	cfg.Config, err = shared.parse(a)
	return cfg, err
}
