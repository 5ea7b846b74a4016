package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/netnskeep"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/spawn"
)

func (a *app) netnsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "netns",
		Short: "Keep network namespaces under names, without root",
		Long: `Keep network namespaces, each with a user namespace that owns it, under names.
A small process keeps each alive until it is deleted. The paths

	$XDG_RUNTIME_DIR/postern/netns/NAME         the network namespace
	$XDG_RUNTIME_DIR/postern/netns/NAME.user    the user namespace that owns it

can be given to postern attach --netns, to nsenter, and as linux.namespaces[].path
of type "network" and "user" to runc and crun. A rootless runtime needs both, and
runc 1.1 also the user namespace's maps as uidMappings and gidMappings.`,
		Example: `  postern netns add web
  postern attach --netns "$XDG_RUNTIME_DIR/postern/netns/web" -p 8080:80 &
  postern exec web -- ip address
  postern netns del web`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("want add, list or del (see postern netns --help)")
		},
	}
	cmd.AddCommand(a.netnsAddCommand(), a.netnsListCommand(), a.netnsDelCommand())
	return cmd
}

func (a *app) netnsAddCommand() *cobra.Command {
	var idMap, within string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a network namespace and print its path",
		Long: `Make a network namespace, with its loopback interface up, and a user namespace
that owns it and maps all of your subordinate ids. Its path is printed.

With --userns it is made in a user namespace that exists. Only networks of one
user namespace can be connected by veth pairs from within.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := netnskeep.CheckName(args[0], instance.CheckName); err != nil {
				return err
			}
			mode, err := mapMode(idMap)
			if err != nil {
				return err
			}
			if within != "" && cmd.Flags().Changed("map") {
				return errors.New("--map and --userns exclude each other: that user namespace has its map")
			}
			a.failed(a.netnsAdd(cmd.Context(), args[0], mode, within))
			return nil
		},
	}
	cmd.Flags().StringVar(&idMap, "map", "auto", "ids of the user namespace: `MODE` auto (all subordinate ids, else one), subid or single")
	cmd.Flags().StringVar(&within, "userns", "", "make it in the user namespace of this named network, instance or process: `NAME|PID`")
	return cmd
}

func (a *app) netnsAdd(ctx context.Context, name string, mode spawn.Mode, within string) (exitCode int, err error) {
	store, err := a.netnsStore()
	if err != nil {
		return exitFailed, err
	}
	if err := sealDescriptors(); err != nil {
		return exitFailed, err
	}
	var target *join.Target
	var maps spawn.IDMaps
	if within != "" {
		if target, err = a.openTarget(within); err != nil {
			return exitFailed, err
		}
		defer target.Close()
	} else if maps, err = spawn.PlanMaps(ctx, mode); err != nil {
		return exitFailed, err
	}
	kept, err := store.Add(ctx, name, maps, target)
	if err != nil {
		return exitFailed, err
	}
	if maps.Notice != "" {
		a.print(errors.New(maps.Notice))
	}
	if _, err := fmt.Fprintln(a.out, kept.Path); err != nil {
		return exitFailed, fmt.Errorf("print the path: %w", err)
	}
	return 0, nil
}

func (a *app) netnsListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the named network namespaces",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a.failed(a.netnsList(asJSON))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) netnsList(asJSON bool) (exitCode int, err error) {
	store, err := a.netnsStore()
	if err != nil {
		return exitFailed, err
	}
	list, err := store.List()
	if err != nil {
		return exitFailed, err
	}
	if asJSON {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		err = e.Encode(list)
	} else {
		t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "NAME\tPID\tNETWORK\tUSER\tPATH")
		for _, k := range list {
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", k.Name, k.PID, k.NetNS, k.UserNS, k.Path)
		}
		err = t.Flush()
	}
	if err != nil {
		return exitFailed, fmt.Errorf("print network namespaces: %w", err)
	}
	return 0, nil
}

func (a *app) netnsDelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "del NAME...",
		Short: "Let named network namespaces go",
		Long: `Remove names and end the processes that keep their namespaces. A namespace that
processes are in lives until they have ended.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, name := range args {
				if err := netnskeep.CheckName(name, instance.CheckName); err != nil {
					return err
				}
			}
			a.failed(a.netnsDel(args))
			return nil
		},
	}
}

func (a *app) netnsDel(names []string) (exitCode int, err error) {
	store, err := a.netnsStore()
	if err != nil {
		return exitFailed, err
	}
	var errs []error
	for _, name := range names {
		if err := store.Del(name); err != nil {
			exitCode = exitFailed
			errs = append(errs, err)
		}
	}
	return exitCode, errors.Join(errs...)
}

// netnsStore is where the names are.
func (a *app) netnsStore() (netnskeep.Store, error) {
	root, err := instance.Places{RuntimeDir: a.getenv("XDG_RUNTIME_DIR")}.Root()
	if err != nil {
		return netnskeep.Store{}, err
	}
	return netnskeep.NewStore(root), nil
}

// openKept opens the network of a name; false if nothing has it.
func openKept(root, name string) (target *join.Target, found bool, err error) {
	kept, err := netnskeep.NewStore(root).Find(name)
	if err != nil {
		return nil, false, nil
	}
	target, err = join.OpenPID(kept.PID)
	if err != nil {
		return nil, true, fmt.Errorf("network namespace %s: %w", name, err)
	}
	again, err := netnskeep.NewStore(root).Find(name)
	if err != nil || again != kept { // so the process was its keeper
		target.Close()
		return nil, true, fmt.Errorf("network namespace %s: its keeper, process %s, ended", name, strconv.Itoa(kept.PID))
	}
	return target, true, nil
}
