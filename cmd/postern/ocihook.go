package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/ocihook"
	"github.com/postern-net/postern/userns/bundle"
)

// ociHookFlags are the flags of oci hook, which prepare writes.
type ociHookFlags struct {
	shared      networkFlags
	files       string
	runtimeDir  string
	annotations bool
}

func (a *app) ociHookCommand() *cobra.Command {
	var f ociHookFlags
	cmd := &cobra.Command{
		Use:   "hook createRuntime|createContainer|poststop",
		Short: "What the runtime calls",
		Long: `Give a container its network, or take it back. The container's state comes on
standard input, from a runtime that found this command in config.json, where
postern oci prepare put it. Neither the environment nor the working directory
has any influence.`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{ocihook.CreateRuntime, ocihook.CreateContainer, ocihook.Poststop},
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := a.ociHook(&f, args[0], given(cmd.Flags()))
			ocihook.LeaveError(f.files, a.err, err)
			a.failed(code, err)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.files, "files", "", "`DIR` of the container's resolv.conf and hosts, to be kept up to date")
	fs.StringVar(&f.runtimeDir, "runtime-dir", "", "the user's XDG_RUNTIME_DIR")
	fs.BoolVar(&f.annotations, "annotations", false, "publish what the annotations "+bundle.Prefix+"* say: prepare wrote them, not the image")
	registerHookFlags(fs, &f.shared)
	return cmd
}

func (a *app) ociHook(f *ociHookFlags, event string, flags []string) (exitCode int, err error) {
	if err := sealDescriptors(); err != nil {
		return exitFailed, err
	}
	state, err := ocihook.ReadState(a.in, event)
	if err != nil {
		return exitFailed, err
	}
	h := ocihook.Hook{Files: f.files, Serve: func(s specs.State, name string) ([]string, error) {
		return a.serveArgs(f, s, name, flags)
	}}
	if event != ocihook.CreateContainer {
		if h.Root, err = (instance.Places{RuntimeDir: f.runtimeDir}).Root(); err != nil {
			return exitFailed, err
		}
	}
	h.Env = []string{"HOME=/"}
	if f.runtimeDir != "" {
		h.Env = append(h.Env, "XDG_RUNTIME_DIR="+f.runtimeDir)
	}
	if err := h.Run(event, state); err != nil {
		return exitFailed, err
	}
	return 0, nil
}

// maxPublish bounds the specs of an annotation: each is a word of a command line.
const maxPublish = 1024

// serveArgs is the command line of a container's server.
func (a *app) serveArgs(f *ociHookFlags, s specs.State, name string, flags []string) ([]string, error) {
	args := []string{"oci", "serve", "--name=" + name, "--files=" + f.files}
	publish, hostIP := strings.Fields(s.Annotations[bundle.PublishAnnotation]), s.Annotations[bundle.HostIPAnnotation]
	if !f.annotations {
		if len(publish) > 0 || hostIP != "" {
			fmt.Fprintf(a.err, "postern: the annotations %s* are not obeyed, they may be the image's (postern oci prepare, or --annotations)\n", bundle.Prefix)
		}
		publish, hostIP = nil, ""
	}
	if len(publish) > maxPublish {
		return nil, fmt.Errorf("annotation %s: more than %d ports", bundle.PublishAnnotation, maxPublish)
	}
	if _, err := bundleSpecs(publish); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", bundle.PublishAnnotation, err)
	}
	if err := parseHostIP(hostIP); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", bundle.HostIPAnnotation, err)
	}
	for _, spec := range publish {
		args = append(args, "--publish="+spec)
	}
	if hostIP != "" {
		args = append(args, "--host-ip="+hostIP)
	}
	return slices.Concat(args, flags, []string{"--", s.ID, s.Bundle, strconv.Itoa(s.Pid)}), nil
}

// report tells the hook that the network cannot be had. It is told only as long as
// it waits.
func report(f *os.File, err error) (told bool) {
	if err != nil {
		_, werr := f.WriteString(ocihook.Failed + err.Error())
		told = werr == nil
	}
	_ = f.Close()
	return told
}
