package rootlesskitcli

import (
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/spawn"
)

// Note is a line for the log about what a flag comes to here.
type Note struct {
	Level slog.Level
	Text  string
}

// notes collects them.
type notes []Note

func (n *notes) warn(text string)  { *n = append(*n, Note{slog.LevelWarn, text}) }
func (n *notes) debug(text string) { *n = append(*n, Note{slog.LevelDebug, text}) }

// Config returns what the command line means, as far as it decides: the caller adds
// the environment, the streams and the places. ipv6 says that this host has IPv6. The
// error is one line and names the flag.
func (i *Invocation) Config(ipv6 bool) (cfg supervisor.RunConfig, lines []Note, err error) {
	cfg = supervisor.RunConfig{
		Config: supervisor.Config{
			StateDir: i.stateDir, Configure: true, Endpoint: supervisor.EndpointAuto, TCP: supervisor.TCPAuto,
			RootlessKit: supervisor.RootlessKit{Hosts: true}, LogLevel: slog.LevelWarn,
		},
		Command: i.Command,
		// RootlessKit gives up without subordinate ids. With one's own alone most
		// commands run, and those that do not say why.
		Map: spawn.Auto,
	}
	if i.Debug {
		cfg.LogLevel = slog.LevelDebug
	}
	n := new(notes)
	i.ignored(n)
	for _, step := range []func(*supervisor.RunConfig, *notes) error{i.process.configure, i.mounts.configure, i.network.configure} {
		if err := step(&cfg, n); err != nil {
			return supervisor.RunConfig{}, nil, err
		}
	}
	err = i.configurePorts(&cfg, ipv6, n)
	return cfg, *n, err
}

// ignored mentions the flags that are about other programs.
func (i *Invocation) ignored(n *notes) {
	for _, name := range slices.Sorted(maps.Keys(i.foreign)) {
		if i.set[name] {
			n.debug(fmt.Sprintf("--%s=%s is ignored: no such program is run", name, *i.foreign[name]))
		}
	}
}

// configurePorts gives ports to the network, if its kind has any.
func (i *Invocation) configurePorts(cfg *supervisor.RunConfig, ipv6 bool, n *notes) error {
	if err := i.ports.checkDriver(); err != nil {
		return err
	}
	if err := checkFit(i.network.driver, i.ports.driver); err != nil {
		return err
	}
	if err := i.ports.configure(cfg, ipv6, n); err != nil {
		return err
	}
	if cfg.Net == supervisor.NetNone && i.ports.driver == "builtin" {
		// The only one that needs no interface in there.
		cfg.PortDriver = supervisor.PortDriverSplice
	}
	return nil
}

func (f *processFlags) configure(cfg *supervisor.RunConfig, _ *notes) error {
	cfg.PIDNS, cfg.CgroupNS, cfg.UTSNS, cfg.IPCNS = f.pid, f.cgroup, f.uts, f.ipc
	switch f.reaper {
	case "auto":
		cfg.Reaper = f.pid
	case "true":
		if !f.pid {
			return fmt.Errorf("--reaper=true requires --pidns")
		}
		cfg.Reaper = true
	case "false":
	default:
		return fmt.Errorf("--reaper %.32q: want auto, true or false", f.reaper)
	}
	if f.evacuate != "" {
		if !f.cgroup || !f.pid {
			return fmt.Errorf("--evacuate-cgroup2 requires --pidns and --cgroupns")
		}
		if strings.Contains(f.evacuate, "/") || f.evacuate == "." || f.evacuate == ".." {
			return fmt.Errorf("--evacuate-cgroup2 %.64q: want the name of one cgroup", f.evacuate)
		}
	}
	cfg.EvacuateCgroup2 = f.evacuate
	switch s := supervisor.SubidSource(f.subids); s {
	case supervisor.SubidAuto, supervisor.SubidDynamic, supervisor.SubidStatic:
		cfg.Subids = s
		return nil
	}
	return fmt.Errorf("--subid-source %.32q: want auto, dynamic or static", f.subids)
}

func (f *mountFlags) configure(cfg *supervisor.RunConfig, _ *notes) error {
	if f.mode != "tmpfs+symlink" {
		return fmt.Errorf("--copy-up-mode %.64q: want tmpfs+symlink", f.mode)
	}
	for _, dir := range f.copyUp {
		clean := path.Clean(dir)
		if !path.IsAbs(clean) || clean == "/" {
			return fmt.Errorf("--copy-up %.128q: want an absolute directory below /", dir)
		}
		cfg.CopyUp = append(cfg.CopyUp, clean)
	}
	switch {
	case !slices.Contains(handoff.Propagations[:], f.propagation):
		return fmt.Errorf("--propagation %.32q: want one of %s", f.propagation, strings.Join(handoff.Propagations[:], ", "))
	case strings.HasSuffix(f.propagation, "shared") && len(f.copyUp) > 0:
		return fmt.Errorf("--propagation=%s: the tmpfs of --copy-up cannot be shared; want rprivate or rslave", f.propagation)
	}
	cfg.Propagation = f.propagation
	return nil
}
