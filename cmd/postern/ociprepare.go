package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/hostconf"
	"github.com/postern-net/postern/cmd/postern/internal/ocihook"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/userns/bundle"
	"github.com/postern-net/postern/userns/spawn"
)

// prepareFlags are the flags of oci prepare, as given.
type prepareFlags struct {
	shared       networkFlags
	publish      []string
	exposed      bool
	hostIP       string
	idMap        string
	dryRun, undo bool
}

func (a *app) ociPrepareCommand() *cobra.Command {
	var f prepareFlags
	cmd := &cobra.Command{
		Use:   "prepare [flags] BUNDLE",
		Short: "Edit a bundle's config.json",
		Long: `Edit BUNDLE/config.json so that runc or crun, called by the same user, gives each
container of the bundle a network: a network namespace, a user namespace with all
subordinate ids, resolv.conf and hosts, and hooks that call this program. What it
does not know it leaves alone; called again, it starts from the original, which it
keeps in BUNDLE/.postern, and --undo restores.

With --host-ip auto each container has an address of its own in 127.0.0.0/8, the
same each time, so that any number of them can publish the same port; postern ports
list --name ID says which. Annotations that came with an image are not obeyed;
--publish-exposed takes the ports that the image says it listens on.

A hook that fails says why. runc prints it; crun throws it away, so it also stands
in BUNDLE/.postern/error.`,
		Example: `  umoci unpack --rootless --image valkey:9 vk-1
  postern oci prepare --publish-exposed --host-ip auto vk-1
  runc run --detach --bundle vk-1 vk-1
  postern ports list --name vk-1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(parseHostIP(f.hostIP), f.parsePublish()); err != nil {
				return err
			}
			mode, err := mapMode(f.idMap)
			if err != nil {
				return err
			}
			cfg, err := f.shared.parse(a)
			if err != nil {
				return err
			}
			a.failed(a.ociPrepare(cmd.Context(), &f, prepareArgs{args[0], mode, cfg, given(cmd.Flags())}))
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port of each container: `SPEC` as for run (repeatable)")
	fs.BoolVar(&f.exposed, "publish-exposed", false, "publish the ports that the image exposes: under the same number with --host-ip, else any free one")
	fs.StringVar(&f.hostIP, "host-ip", "", "host `ADDR` of published ports that name none; auto is one of its own for each container")
	fs.StringVar(&f.idMap, "map", "auto", "ids of the user namespace: `MODE` auto (all subordinate ids, else one), subid or single")
	fs.BoolVar(&f.dryRun, "dry-run", false, "print the edit as a diff and do not make it")
	fs.BoolVar(&f.undo, "undo", false, "take the edit back")
	registerHookFlags(fs, &f.shared)
	return cmd
}

func (f *prepareFlags) parsePublish() error {
	if _, err := bundleSpecs(f.publish); err != nil {
		return fmt.Errorf("--publish: %w", err)
	}
	return nil
}

// prepareArgs is what the flags of oci prepare come to.
type prepareArgs struct {
	dir   string
	mode  spawn.Mode
	cfg   supervisor.Config
	flags []string // for the hook
}

func (a *app) ociPrepare(ctx context.Context, f *prepareFlags, args prepareArgs) (exitCode int, err error) {
	b, err := bundle.Open(args.dir)
	if err != nil {
		return exitFailed, err
	}
	defer b.Close()
	var change *bundle.Change
	if f.undo {
		change, err = b.Undo()
	} else {
		change, err = a.ociChange(ctx, b, f, args)
	}
	if err != nil {
		return exitFailed, err
	}
	if f.dryRun {
		_, err = a.out.Write(change.Diff())
	} else {
		err = b.Make(change)
	}
	if err != nil {
		return exitFailed, err
	}
	return 0, nil
}

// ociChange thinks the edit out.
func (a *app) ociChange(ctx context.Context, b *bundle.Bundle, f *prepareFlags, args prepareArgs) (*bundle.Change, error) {
	publish, err := a.bundlePublish(b, f)
	if err != nil {
		return nil, err
	}
	plan := bundle.Plan{KeepMaps: args.mode == spawn.Auto, Annotations: make(map[string]string)}
	if len(publish) > 0 {
		plan.Annotations[bundle.PublishAnnotation] = strings.Join(publish, " ")
	}
	if f.hostIP != "" {
		plan.Annotations[bundle.HostIPAnnotation] = f.hostIP
	}
	if plan.Hook, err = a.bundleHook(b.Side(), args.flags); err != nil {
		return nil, err
	}
	if err := a.bundleMaps(ctx, &plan, args.mode); err != nil {
		return nil, err
	}
	host, err := hostconf.Read(hostconf.Path)
	if err != nil {
		fmt.Fprintf(a.err, "postern: no name servers: %v\n", err)
	}
	if plan.ResolvConf, plan.Hosts, err = supervisor.HostFiles(args.cfg, host, b.Hostname()); err != nil {
		return nil, err
	}
	return b.Prepare(plan)
}

// bundlePublish are the specs of the bundle's ports, those of the image included if
// the user said so.
func (a *app) bundlePublish(b *bundle.Bundle, f *prepareFlags) ([]string, error) {
	claims, err := b.Claims()
	if err != nil {
		return nil, err
	}
	for name, value := range claims {
		fmt.Fprintf(a.err, "postern: the image's annotation %s=%s is not obeyed and is removed; say it with a flag if it is right\n", name, value)
	}
	publish := slices.Clone(f.publish)
	if !f.exposed {
		return publish, nil
	}
	exposed, others, err := b.Exposed()
	if err != nil {
		return nil, fmt.Errorf("--publish-exposed: %w", err)
	}
	if len(exposed) == 0 {
		fmt.Fprintf(a.err, "postern: --publish-exposed: the image exposes no port (there is no annotation %s)\n", bundle.ExposedAnnotation)
	}
	for _, other := range others {
		fmt.Fprintf(a.err, "postern: --publish-exposed: %s cannot be published; want tcp or udp\n", other)
	}
	for _, e := range exposed {
		spec := fmt.Sprintf("%d/%s", e.Port, e.Proto)
		if f.hostIP != "" {
			spec = fmt.Sprintf("%d:%s", e.Port, spec)
		}
		publish = append(publish, spec)
	}
	return publish, nil
}

// bundleMaps plans the ids. Root needs no user namespace unless it asks for one.
func (a *app) bundleMaps(ctx context.Context, plan *bundle.Plan, mode spawn.Mode) error {
	if os.Geteuid() == 0 && mode == spawn.Auto {
		return nil
	}
	maps, err := spawn.PlanMaps(ctx, mode)
	if err != nil {
		return err
	}
	if maps.Notice != "" {
		fmt.Fprintln(a.err, "postern:", maps.Notice)
	}
	plan.UID, plan.GID = maps.UID, maps.GID
	return nil
}

// bundleHook is the hook that calls this program. Everything that it depends on is
// in its arguments.
func (a *app) bundleHook(side string, flags []string) (h bundle.Hook, err error) {
	if h.Path, err = os.Executable(); err != nil {
		return h, fmt.Errorf("find the path of this program: %w", err)
	}
	if info, err := os.Stat(h.Path); err != nil || !info.Mode().IsRegular() {
		return h, fmt.Errorf("find the path of this program: it is no longer at %s; install it where it stays", h.Path)
	}
	h.Args = append(bundle.HookWords[:], bundle.EventPlace, "--files="+side, "--annotations")
	home, runtime := a.getenv("HOME"), a.getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(home) {
		home = "/"
	}
	h.Env = []string{"HOME=" + home}
	if filepath.IsAbs(runtime) {
		h.Args = append(h.Args, "--runtime-dir="+runtime)
		h.Env = append(h.Env, "XDG_RUNTIME_DIR="+runtime)
	}
	h.Args = append(h.Args, flags...)
	h.Timeout = ocihook.Timeout
	return h, nil
}
