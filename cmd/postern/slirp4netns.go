package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/slirpcli"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// exitSlirp is slirp4netns' exit code for whatever went wrong.
const exitSlirp = 1

// slirp4netns is the program of that name: it serves a network namespace that
// somebody else made and configures as that one asks. It stays in the foreground.
func (a *app) slirp4netns(ctx context.Context, args []string) int {
	o, err := slirpcli.Parse(args)
	switch {
	case err != nil:
		return a.slirpMistake(err)
	case o.Action == slirpcli.ShowHelp:
		return a.slirpShow(slirpcli.Help)
	case o.Action == slirpcli.ShowVersion:
		return a.slirpShow(slirpcli.Version(version(), revision()))
	}
	cfg, notes, err := o.Attach(outboundAddrs)
	if err != nil {
		return a.slirpFailed(err)
	}
	if len(o.Extra) > 0 {
		notes = append(notes, fmt.Sprintf("ignored: %s", strings.Join(o.Extra, " ")))
	}
	for _, note := range notes {
		a.slirpSay(note)
	}
	return a.slirpServe(ctx, &o, &cfg)
}

// slirpServe serves until it is over.
func (a *app) slirpServe(ctx context.Context, o *slirpcli.Options, cfg *supervisor.AttachConfig) int {
	// Who started us may leave with the other end of our standard output.
	signal.Ignore(unix.SIGPIPE)
	cfg.Version, cfg.LogLevel = version(), slog.LevelWarn
	cfg.Stdin, cfg.Stdout, cfg.Stderr = a.in, a.out, a.err
	if err := adoptSlirp(o, cfg); err != nil {
		return a.slirpFailed(err)
	}
	if err := sealDescriptors(); err != nil {
		return a.slirpFailed(err)
	}
	remove, err := a.placeInstance(&cfg.Config)
	if err != nil {
		return a.slirpFailed(err)
	}
	if err := a.listenGuest(o, cfg); err != nil {
		return a.slirpFailed(errors.Join(err, remove()))
	}
	if o.ReadyFD != int(unix.Stdout) { // else the first byte there is to be the "1"
		_, _ = io.WriteString(a.out, o.Banner(cfg.Plan.V4, cfg.MTU)) // nobody reads it: no harm
	}
	code, err := supervisor.Attach(ctx, *cfg)
	if err := errors.Join(err, remove()); err != nil {
		return a.slirpFailed(err)
	}
	if code != supervisor.ExitOK {
		return exitSlirp
	}
	return code
}

// listenGuest listens for the virtual machine, if one is to be served, and says so:
// the line is the original's, for callers that wait for it before they start one.
//
// The "1" for --ready-fd does not come at this point but, as from the original, when a
// machine has connected and its packets flow; who waits for it first and starts the
// machine then waits forever, here as there. The control socket is open before, for
// ports that shall be there when the machine is.
func (a *app) listenGuest(o *slirpcli.Options, cfg *supervisor.AttachConfig) (err error) {
	if !o.Bess {
		return nil
	}
	if cfg.Guest, err = supervisor.ListenGuest(o.Path); err == nil {
		fmt.Fprintf(a.err, "Waiting for connection to %s\n", o.Path)
	}
	return err
}

// slirpShow prints what was asked for.
func (a *app) slirpShow(text string) int {
	if _, err := io.WriteString(a.out, text); err != nil {
		return a.slirpFailed(fmt.Errorf("write to standard output: %w", err))
	}
	return supervisor.ExitOK
}

// slirpMistake answers a command line that is wrong, with the usage where the
// original gives it.
func (a *app) slirpMistake(err error) int {
	var usage *slirpcli.UsageError
	if errors.As(err, &usage) {
		_, _ = io.WriteString(a.out, slirpcli.Help) // the exit code tells all the same
		if usage.Err == nil {
			return exitSlirp
		}
	}
	return a.slirpFailed(err)
}

// slirpFailed prints an error, one line for each that was joined.
func (a *app) slirpFailed(err error) int {
	for line := range strings.Lines(err.Error()) {
		a.slirpSay(strings.TrimRight(line, "\n"))
	}
	return exitSlirp
}

func (a *app) slirpSay(line string) { fmt.Fprintln(a.err, "slirp4netns:", line) }

// revision is the commit that the program was built from, "" if unknown.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
