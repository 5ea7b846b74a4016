package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

func (a *app) psCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List running instances",
		Long: `List the running instances of the calling user. Directories that dead instances
left behind are removed on the way.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a.failed(a.ps(asJSON))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) ps(asJSON bool) (exitCode int, err error) {
	root, err := instance.Places{RuntimeDir: a.getenv("XDG_RUNTIME_DIR")}.Root()
	if err != nil {
		return exitFailed, err
	}
	infos, err := instance.List(root)
	if err != nil {
		return exitFailed, err
	}
	if asJSON {
		err = printJSON(a.out, infos)
	} else {
		err = printTable(a.out, infos, time.Now())
	}
	if err != nil {
		return exitFailed, fmt.Errorf("print instances: %w", err)
	}
	return 0, nil
}

func printJSON(w io.Writer, infos []instance.Info) error {
	if infos == nil {
		infos = []instance.Info{} // [] and not null
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(infos)
}

// printTable prints one line an instance. What an instance does not say yet,
// because it is just starting, is a dash.
func printTable(w io.Writer, infos []instance.Info, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tPID\tENDPOINT\tTCP\tADDRESS\tSTARTED\tCOMMAND")
	for _, i := range infos {
		pid, started := "-", "-"
		if i.ChildPID != 0 {
			pid = fmt.Sprint(i.ChildPID)
		}
		if !i.Started.IsZero() {
			started = age(now.Sub(i.Started)) + " ago"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", i.Name, pid, dash(i.Endpoint), tcpPath(i), dash(first(i.Addresses)), started,
			dash(commandLine(i.Command)))
	}
	return t.Flush()
}

// tcpPath says how TCP leaves an instance, and why so if it is not at its best.
func tcpPath(i instance.Info) string {
	if i.TCPWhy == "" {
		return dash(i.TCP)
	}
	return i.TCP + " (" + commandLine([]string{i.TCPWhy}) + ")"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func first(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

// maxColumn is how much of a command line a table shows, in runes.
const maxColumn = 60

// commandLine shortens a command line to one line without control characters,
// which could otherwise drive the terminal.
func commandLine(words []string) string {
	line := []rune(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.Join(words, " ")))
	if len(line) > maxColumn {
		line = append(line[:maxColumn-1], '…')
	}
	return string(line)
}

// age prints a duration in its largest unit.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s" // the clock was set back
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
