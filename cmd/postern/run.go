package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// runFlags are the flags of run only.
type runFlags struct {
	idMap       string
	subids      string
	net         string
	copyUp      []string
	copyUpMode  string
	propagation string
	reaper      string
	evacuate    string
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
into, and postern exec NAME enters it.

With --net=none the new network has a loopback interface and nothing else; with
--net=host COMMAND is in the host's network. There is no engine then, and there are
no published ports.`,
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
	fs.StringVar(&f.net, "net", string(supervisor.NetEngine), "`KIND` of network: engine, none (loopback only) or host (no new one)")
	fs.StringVar(&f.idMap, "map", "auto", "ids of the user namespace: `MODE` auto (all subordinate ids, else one), subid or single")
	fs.StringVar(&f.subids, "subid-source", string(supervisor.SubidAuto),
		"`SOURCE` of subordinate ids: auto (as nsswitch.conf says), dynamic (getsubids) or static (/etc/subuid, /etc/subgid)")
	fs.StringSliceVar(&f.copyUp, "copy-up", nil, "make `DIR` a writable copy of the host's (repeatable)")
	fs.StringVar(&f.copyUpMode, "copy-up-mode", copyUpMode, "`MODE` of the copies: tmpfs+symlink, the only one")
	fs.StringVar(&f.propagation, "propagation", "rprivate",
		"mount propagation `MODE`: rprivate, rslave (the host's later mounts are seen) or rshared; private, slave, shared: of / only")
	fs.BoolVar(&f.detach, "detach-netns", false, "leave COMMAND in the host's network, the new one at $ROOTLESSKIT_STATE_DIR/netns")
	fs.BoolVar(&f.pid, "pidns", false, "also make a PID namespace")
	fs.BoolVar(&f.ipc, "ipcns", false, "also make an IPC namespace")
	fs.BoolVar(&f.uts, "utsns", false, "also make a UTS namespace")
	fs.BoolVar(&f.cgroup, "cgroupns", false, "also make a cgroup namespace")
	fs.StringVar(&f.reaper, "reaper", "auto", "`WHETHER` orphans of the PID namespace are waited for: true, false, or auto, which is true with --pidns")
	fs.StringVar(&f.evacuate, "evacuate-cgroup2", "",
		"move the processes of this cgroup to the cgroup `NAME` below it, for COMMAND to have controllers (with --pidns and --cgroupns)")
}

// copyUpMode is the only way in which directories are copied up.
const copyUpMode = "tmpfs+symlink"

// parse checks all flags of run.
func (f *runFlags) parse(a *app, shared *networkFlags, args []string) (cfg supervisor.RunConfig, err error) {
	cfg = supervisor.RunConfig{
		Command: args, Env: a.env, CopyUp: f.copyUp, Propagation: f.propagation,
		DetachNetNS: f.detach, PIDNS: f.pid, IPCNS: f.ipc, UTSNS: f.uts, CgroupNS: f.cgroup,
		Net: supervisor.Net(f.net), EvacuateCgroup2: f.evacuate, Subids: supervisor.SubidSource(f.subids),
	}
	if len(args) == 0 {
		cfg.Command = a.shell()
	}
	if cfg.Map, err = mapMode(f.idMap); err != nil {
		return supervisor.RunConfig{}, err
	}
	if cfg.Reaper, err = f.parseReaper(); err != nil {
		return supervisor.RunConfig{}, err
	}
	if f.copyUpMode != copyUpMode {
		return supervisor.RunConfig{}, fmt.Errorf("--copy-up-mode %q: want %s", f.copyUpMode, copyUpMode)
	}
	for _, dir := range f.copyUp {
		if len(dir) < 2 || dir[0] != '/' {
			return supervisor.RunConfig{}, fmt.Errorf("--copy-up %q: want an absolute directory below /", dir)
		}
	}
	if cfg.Config, err = shared.parse(a); err != nil {
		return supervisor.RunConfig{}, err
	}
	return cfg, cfg.Check()
}

// parseReaper reads --reaper.
func (f *runFlags) parseReaper() (bool, error) {
	switch f.reaper {
	case "auto":
		return f.pid, nil
	case "true", "false":
		return f.reaper == "true", nil
	}
	return false, fmt.Errorf("--reaper %q: want auto, true or false", f.reaper)
}
