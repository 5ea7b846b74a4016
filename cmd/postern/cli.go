package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// exitUsage is the exit code for a command line that is wrong.
const exitUsage = 2

// stdio are the standard streams.
type stdio struct {
	in, out, err *os.File
}

// app is one run of the program.
type app struct {
	stdio
	env  []string
	exit int
}

// run executes a command line and returns the exit code.
func run(ctx context.Context, args, env []string, std stdio) int {
	a := &app{stdio: std, env: env}
	root := a.root()
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		// Whatever reaches cobra is about the command line: commands report their
		// own failures (see failed).
		a.print(err)
		return exitUsage
	}
	return a.exit
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "A network for containers, without root",
		Long: `postern gives a container a network without anyone becoming root: TCP, UDP and
ping to the outside, and name service, from one static program.

	postern run -- curl http://example.org/      a command in a network of its own
	postern run -- sh                            look around: ip address, ping, dig
	postern attach PID                           serve namespaces that exist
	postern ps                                   what is running
	postern exec NAME -- ip address              a command in a running network`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("no command given (see postern --help)")
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("postern {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, c.CommandPath())
	})
	root.AddCommand(a.runCommand(), a.attachCommand(), a.portsCommand(), a.psCommand(), a.execCommand(), a.netnsCommand(), a.inspectCommand(), a.ociCommand())
	root.AddCommand(a.personalityCommands()...)
	return root
}

// failed notes the outcome of a command that got beyond its command line.
func (a *app) failed(code int, err error) {
	if err != nil {
		a.print(err)
	}
	a.exit = code
}

// seal is sealDescriptors; false means that it failed and said so.
func (a *app) seal() bool {
	err := sealDescriptors()
	if err != nil {
		a.failed(exitFailed, err)
	}
	return err == nil
}

// print writes an error, one line for each that was joined.
func (a *app) print(err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(a.err, "postern:", strings.TrimRight(line, "\n"))
	}
}

// getenv returns a variable's value, "" if it is not set. Of several the first
// counts, as in getenv(3).
func (a *app) getenv(name string) string {
	for _, entry := range a.env {
		if v, found := strings.CutPrefix(entry, name+"="); found {
			return v
		}
	}
	return ""
}

// shell is the command to run when none is given.
func (a *app) shell() []string {
	if s := a.getenv("SHELL"); s != "" {
		return []string{s}
	}
	return []string{"/bin/sh"}
}

// version is what the module was built as.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// exitFailed is the exit code when postern itself failed.
const exitFailed = supervisor.ExitFailed
