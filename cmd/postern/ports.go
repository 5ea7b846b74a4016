package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/api"
)

// portsFlags say which instance is meant, and how it is to be reported.
type portsFlags struct {
	name, socket string
	json         bool
}

func (a *app) portsCommand() *cobra.Command {
	f := new(portsFlags)
	cmd := &cobra.Command{
		Use:   "ports",
		Short: "List and change the published ports of a running instance",
		Long: `List and change the published ports of a running instance: the one that --name
names or whose control socket is given, else the only one that runs.`,
		Example: `  postern ports list
  postern ports add 8080:80 0.0.0.0:5353:53/udp
  postern ports add --name amber-gate 8000-8010:80-90 unix:/tmp/web.sock:80
  postern ports remove 1 2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("no command given (see %s --help)", cmd.CommandPath())
		},
	}
	fs := cmd.PersistentFlags()
	fs.StringVar(&f.name, "name", "", "instance `NAME` (default: the only one)")
	fs.StringVar(&f.socket, "socket", "", "control socket `PATH` (api.sock in the --state-dir of an instance)")
	cmd.MarkFlagsMutuallyExclusive("name", "socket")
	// It only fails for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("name", a.completeNames)
	cmd.AddCommand(a.portsListCommand(f), a.portsAddCommand(f), a.portsRemoveCommand(f))
	return cmd
}

func (a *app) portsListCommand(f *portsFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List published ports",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.failed(a.withPorts(f, func(c *apisock.Client) error {
				ports, err := c.Ports(cmd.Context())
				if err != nil {
					return fmt.Errorf("list ports: %w", err)
				}
				return a.printPorts(ports, f.json, printPortTable)
			}))
			return nil
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (a *app) portsAddCommand(f *portsFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add SPEC...",
		Short: "Publish ports",
		Long: `Publish ports, all of them or none, and print what was published. A SPEC is what
postern run --publish takes: [HOSTIP:][HOSTPORT]:[CTRIP:]CTRPORT[/PROTO]. Without
HOSTIP the port is published on 127.0.0.1 and ::1, without HOSTPORT on a free port.`,
		Args: cobra.RangeArgs(1, api.MaxSpecs),
		RunE: func(cmd *cobra.Command, specs []string) error {
			for _, text := range specs {
				if _, err := portdriver.ParseSpec(text); err != nil {
					return err
				}
			}
			a.failed(a.withPorts(f, func(c *apisock.Client) error {
				ports, err := c.AddPorts(cmd.Context(), specs)
				if err != nil {
					return fmt.Errorf("add ports: %w", err)
				}
				return a.printPorts(ports, f.json, printAdded)
			}))
			return nil
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (a *app) portsRemoveCommand(f *portsFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID...",
		Short: "End published ports",
		Long: `End the rules with these IDs (postern ports list) and print the IDs of those that
were ended. Connections that exist go on.`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.completeIDs(cmd.Context(), f), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ids := make([]int, len(args))
			for i, arg := range args {
				id, err := strconv.Atoi(arg)
				if err != nil || id < 1 {
					return fmt.Errorf("remove port %q: want the ID of a rule (see postern ports list)", arg)
				}
				ids[i] = id
			}
			a.failed(a.withPorts(f, func(c *apisock.Client) error { return a.removePorts(cmd.Context(), c, ids) }))
			return nil
		},
	}
}

// removePorts ends as many of the rules as it can.
func (a *app) removePorts(ctx context.Context, c *apisock.Client, ids []int) error {
	var failures []error
	for _, id := range ids {
		err := c.RemovePort(ctx, id)
		if err == nil {
			_, err = fmt.Fprintln(a.out, id)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("remove port %d: %w", id, err))
		}
	}
	return errors.Join(failures...)
}

// withPorts runs a command with a client of the instance that is meant.
func (a *app) withPorts(f *portsFlags, do func(*apisock.Client) error) (exitCode int, err error) {
	socket, err := a.controlSocket(f)
	if err != nil {
		return exitFailed, err
	}
	c := apisock.NewClient(socket)
	defer c.Close()
	if err := do(c); err != nil {
		return exitFailed, err
	}
	return 0, nil
}

// controlSocket finds the control socket of the instance that is meant.
func (a *app) controlSocket(f *portsFlags) (path string, err error) {
	if f.socket != "" {
		return f.socket, nil
	}
	root, err := instance.Places{RuntimeDir: a.getenv("XDG_RUNTIME_DIR")}.Root()
	if err != nil {
		return "", err
	}
	name := f.name
	if name == "" {
		name, err = onlyInstance(root)
	} else {
		_, err = instance.Find(root, name)
	}
	return filepath.Join(root, name, "api.sock"), err
}

// onlyInstance returns the name of the one running instance.
func onlyInstance(root string) (string, error) {
	infos, err := instance.List(root)
	switch {
	case err != nil:
		return "", err
	case len(infos) == 0:
		return "", errors.New("find an instance: none is running (name the --socket of one with a --state-dir of its own)")
	case len(infos) > 1:
		return "", fmt.Errorf("find an instance: %d are running, %s (choose one with --name)", len(infos), strings.Join(names(infos), ", "))
	}
	return infos[0].Name, nil
}

func names(infos []instance.Info) []string {
	all := make([]string, len(infos))
	for i := range infos {
		all[i] = infos[i].Name
	}
	return all
}

// printPorts prints rules as JSON or with a function.
func (a *app) printPorts(ports []api.Port, asJSON bool, print func(io.Writer, []api.Port) error) (err error) {
	if asJSON {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		err = e.Encode(ports)
	} else {
		err = print(a.out, ports)
	}
	if err != nil {
		return fmt.Errorf("print ports: %w", err)
	}
	return nil
}

// arrow stands between the two ends of a rule, see portdriver.Rule.
const arrow = " -> "

func printAdded(w io.Writer, ports []api.Port) error {
	for _, p := range ports {
		if _, err := fmt.Fprintf(w, "%d  %s\n", p.ID, portText(p)); err != nil {
			return err
		}
	}
	return nil
}

func printPortTable(w io.Writer, ports []api.Port) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tFROM\tTO\tOPTIONS")
	for _, p := range ports {
		from, to, _ := strings.Cut(portText(p), arrow)
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", p.ID, from, dash(to), dash(strings.Join(portOptions(p), ",")))
	}
	return t.Flush()
}

// portText says where a rule's clients come and where they are taken.
func portText(p api.Port) string {
	spec, err := portdriver.ParseSpec(p.Spec)
	if err != nil {
		return strconv.Quote(p.Spec) // of an instance that is newer than we are
	}
	rule := portdriver.Rule{ID: p.ID, Spec: spec}
	for _, b := range p.Bound {
		rule.Listeners = append(rule.Listeners, portdriver.Listener{Rule: p.ID, Bound: b})
	}
	return rule.String()
}

func portOptions(p api.Port) (options []string) {
	if p.Auto {
		options = append(options, "auto")
	}
	if p.Proxy != 0 {
		options = append(options, "proxy=v"+strconv.Itoa(p.Proxy))
	}
	return options
}

// completeNames completes the names of running instances.
func (a *app) completeNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	root, err := instance.Places{RuntimeDir: a.getenv("XDG_RUNTIME_DIR")}.Root()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	infos, err := instance.List(root)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names(infos), cobra.ShellCompDirectiveNoFileComp
}

// completeIDs completes rules of the instance that the command line means so far.
func (a *app) completeIDs(ctx context.Context, f *portsFlags) (completions []string) {
	_, _ = a.withPorts(f, func(c *apisock.Client) error {
		ports, err := c.Ports(ctx)
		for _, p := range ports {
			completions = append(completions, cobra.CompletionWithDesc(strconv.Itoa(p.ID), portText(p)))
		}
		return err
	})
	return completions
}
