package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/inspectview"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/netnskeep"
	"github.com/postern-net/postern/userns/inspect"
)

func (a *app) inspectCommand() *cobra.Command {
	var asJSON, asDot bool
	cmd := &cobra.Command{
		Use:   "inspect [NAME|PID]",
		Short: "Show which namespaces there are, who lives in them, how they connect",
		Long: `Show the user and network namespaces that you may look at, as a tree: who lives in
them, the interfaces with their addresses, which interface of which namespace is the
other end of a veth pair, which process serves a TAP, and published ports. Containers
of runc, crun, podman, containerd and docker, RootlessKit and instances of postern
are recognised. Nothing but your own rights is needed; what they do not reach is said.

A PID explains one process in five lines. A NAME (of an instance, or of a network of
postern netns) shows that network and those that it is connected with.

--json prints one object; namespaces refer to one another by inode numbers. --dot
prints a graph for dot(1).`,
		Example: `  postern inspect
  postern inspect 4711
  postern inspect --json | jq '.networks[] | {id, names, ports}'
  postern inspect --dot | dot -Tsvg > networks.svg`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON && asDot {
				return errors.New("--json and --dot exclude each other")
			}
			a.failed(a.inspect(cmd.Context(), args, asJSON, asDot))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&asDot, "dot", false, "print a graph for dot(1)")
	return cmd
}

func (a *app) inspect(ctx context.Context, args []string, asJSON, asDot bool) (exitCode int, err error) {
	root, err := instance.Places{RuntimeDir: a.getenv("XDG_RUNTIME_DIR")}.Root()
	if err != nil {
		return exitFailed, err
	}
	known, err := knownNetworks(root)
	if err != nil {
		return exitFailed, err
	}
	defer closeKnown(known)
	r, err := inspect.Collect(ctx, inspect.Options{RuntimeDir: a.getenv("XDG_RUNTIME_DIR"), Known: known, Ports: askPorts})
	if err != nil {
		return exitFailed, err
	}
	subject := subject{}
	if len(args) == 1 {
		if subject, err = findSubject(root, args[0], known, r); err != nil {
			return exitFailed, err
		}
	}
	if err := subject.print(a.out, r, asJSON, asDot); err != nil {
		return exitFailed, fmt.Errorf("print namespaces: %w", err)
	}
	return 0, nil
}

// subject is what a report is about: a process, some networks, or everything.
type subject struct {
	process  *inspect.Process
	networks map[uint64]bool
}

func (s subject) print(w io.Writer, r *inspect.Report, asJSON, asDot bool) error {
	switch {
	case asJSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s.cut(r))
	case asDot && s.process != nil:
		return inspectview.Dot(w, r, r.Connected(s.process.NS.Net))
	case asDot:
		return inspectview.Dot(w, r, s.networks)
	case s.process != nil:
		return inspectview.Five(w, r, s.process)
	}
	return inspectview.Tree(w, r, s.networks)
}

// cut leaves in a report what is about the subject.
func (s subject) cut(r *inspect.Report) *inspect.Report {
	networks := s.networks
	if s.process != nil {
		networks = r.Connected(s.process.NS.Net)
	}
	if networks == nil {
		return r
	}
	return r.Only(networks, s.process)
}

// findSubject finds what a name or number means.
func findSubject(root, name string, known []inspect.Known, r *inspect.Report) (subject, error) {
	for _, k := range known {
		if k.Name != name {
			continue
		}
		id, err := networkOf(k)
		if err != nil {
			return subject{}, err
		}
		return subject{networks: r.Connected(id)}, nil
	}
	if kept, err := netnskeep.NewStore(root).Find(name); err == nil {
		return subject{networks: r.Connected(kept.NetNS)}, nil
	}
	pid, err := strconv.Atoi(name)
	if err != nil || pid <= 0 {
		return subject{}, fmt.Errorf("inspect %q: no instance, named network or process (see postern ps, postern netns list)", name)
	}
	if p := r.Process(pid); p != nil {
		return subject{process: p}, nil
	}
	if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
		return subject{}, fmt.Errorf("inspect process %d: %w", pid, err)
	}
	return subject{}, fmt.Errorf("inspect process %d: its namespaces may not be read: %w (it takes its user, or the owner of its user namespace)", pid, unix.EACCES)
}
