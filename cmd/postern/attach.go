package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

func (a *app) attachCommand() *cobra.Command {
	var shared networkFlags
	var netns, userns string
	var configure bool
	cmd := &cobra.Command{
		Use:   "attach [flags] PID | --netns PATH [--userns PATH]",
		Short: "Serve namespaces that exist already",
		Long: `Give a network to namespaces that someone else made: those of the process PID,
or the one at PATH. postern serves until the process has ended or the path no
longer leads to the namespace, and must be run by the owner of the user namespace.`,
		Example: `  postern attach "$(cat container.pid)"
  postern attach --netns /run/user/1000/netns/web
  postern attach --configure=false PID     # addresses by DHCP or router advertisement`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := applyConfig(cmd.Flags(), shared.config); err != nil {
				return err
			}
			cfg := supervisor.AttachConfig{NetNS: netns, UserNS: userns}
			var err error
			if cfg.PID, err = attachTarget(args, netns, userns); err != nil {
				return err
			}
			if cfg.Config, err = shared.parse(a); err != nil {
				return err
			}
			cfg.Configure = configure
			if a.seal() {
				a.failed(supervisor.Attach(cmd.Context(), cfg))
			}
			return nil
		},
	}
	fs := cmd.Flags()
	shared.register(fs)
	fs.StringVar(&netns, "netns", "", "`PATH` of the network namespace")
	fs.StringVar(&userns, "userns", "", "`PATH` of the user namespace to enter through (default: the network namespace's owner)")
	fs.BoolVar(&configure, "configure", true, "give the interface its addresses and routes; false only brings it up")
	return cmd
}

// attachTarget checks that exactly one target is named and returns its pid, if
// that is how.
func attachTarget(args []string, netns, userns string) (pid int, err error) {
	switch {
	case len(args) == 1 && (netns != "" || userns != ""):
		return 0, errors.New("PID and --netns exclude each other (see postern attach --help)")
	case len(args) == 0 && netns == "":
		return 0, errors.New("want a PID or --netns (see postern attach --help)")
	case len(args) == 0:
		return 0, nil
	}
	pid, err = strconv.Atoi(args[0])
	if err != nil || pid < 1 {
		return 0, fmt.Errorf("PID %q: want the number of a process", args[0])
	}
	return pid, nil
}
