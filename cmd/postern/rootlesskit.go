package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/rootlesskitcli"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// exitRootlessKit is rootlesskit's exit code for whatever it could not do itself.
const exitRootlessKit = 1

// rootlesskit is the program of that name.
func (a *app) rootlesskit(ctx context.Context, args []string) int {
	inv, err := rootlesskitcli.Parse(args)
	if err != nil {
		return a.rootlesskitFailed(err)
	}
	switch {
	case inv.Help:
		fmt.Fprint(a.out, rootlesskitcli.Help)
		return supervisor.ExitOK
	case inv.Version:
		fmt.Fprintln(a.out, rootlesskitcli.VersionText(version()))
		return supervisor.ExitOK
	case inv.Semver != "":
		n, err := rootlesskitcli.Component(inv.Semver)
		if err != nil {
			return a.rootlesskitFailed(err)
		}
		fmt.Fprintln(a.out, n)
		return supervisor.ExitOK
	}
	cfg, err := a.rootlesskitConfig(inv)
	if err == nil {
		err = sealDescriptors()
	}
	if err != nil {
		return a.rootlesskitFailed(err)
	}
	code, err := supervisor.Run(ctx, cfg)
	if err != nil {
		return a.rootlesskitFailed(err)
	}
	return code
}

func (a *app) rootlesskitFailed(err error) int {
	a.print(fmt.Errorf("rootlesskit: %w", err))
	return exitRootlessKit
}

// rootlesskitConfig adds what the command line does not decide, and readies the state
// directory.
func (a *app) rootlesskitConfig(inv *rootlesskitcli.Invocation) (supervisor.RunConfig, error) {
	cfg, notes, err := inv.Config(hasIPv6())
	if err != nil {
		return cfg, err
	}
	cfg.RuntimeDir, cfg.Version, cfg.Env = a.getenv("XDG_RUNTIME_DIR"), rootlesskitcli.APIVersion(version()), a.env
	cfg.Stdin, cfg.Stdout, cfg.Stderr = a.in, a.out, a.err
	log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: cfg.LogLevel}))
	for _, n := range notes {
		log.Log(context.Background(), n.Level, n.Text)
	}
	if cfg.Passed, err = supervisor.TakePassed(a.getenv, os.Getpid()); err != nil {
		return cfg, err
	}
	if pid := a.getenv("LISTEN_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		log.Warn("the sockets of LISTEN_FDS are for another process and not passed on to the command; start rootlesskit with exec", "pid", pid)
	}
	if cfg.IfName != "" {
		if err := checkIfName(cfg.IfName); err != nil {
			return cfg, err
		}
	}
	if cfg.StateDir != "" {
		err = instance.Takeover(cfg.StateDir)
	}
	return cfg, err
}

// hasIPv6 reports whether this host can listen on IPv6 addresses.
func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}
