package main

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// A personality is what this program is when it is called by another program's
// name: a command line of its own, read by rules of its own, with that program's exit
// codes and its name before errors (unlike doc.go). Roles (roles.go) come
// before personalities, so that a process that a personality started is what it was
// started as. Nothing but the name and an explicit subcommand leads here.
type personality struct {
	// name is the base name of argv[0], and the subcommand of postern.
	name string
	// short is its line in postern --help.
	short string
	// run runs a command line, without the name, and returns the exit code. It is
	// called on the main thread.
	run func(a *app, ctx context.Context, args []string) int
}

// personalities are all there are.
func personalities() []personality {
	return []personality{
		{"slirp4netns", "Be slirp4netns, for who calls that", (*app).slirp4netns},
		{"rootlesskit", "Be rootlesskit, for who calls that", (*app).rootlesskit},
		{"docker-rootlesskit", "The same, by the name that Docker's packages give it", (*app).rootlesskit},
	}
}

// sideBySide is what a packager appends to a name whose original is installed in
// the same directory.
const sideBySide = "-postern"

// asCalled returns postern's arguments for a process's: those of a personality
// whose name argv[0] has are the subcommand's. A symbolic link is as good as a
// copy, because argv[0] is the name that was called.
func asCalled(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	name := strings.TrimSuffix(filepath.Base(argv[0]), sideBySide)
	for _, p := range personalities() {
		if p.name == name {
			return append([]string{name}, argv[1:]...)
		}
	}
	return argv[1:]
}

// personalityCommands are the subcommands; they see their arguments as they came.
func (a *app) personalityCommands() []*cobra.Command {
	var all []*cobra.Command
	for _, p := range personalities() {
		all = append(all, &cobra.Command{
			Use: p.name, Short: p.short, Args: cobra.ArbitraryArgs, DisableFlagParsing: true,
			Run: func(cmd *cobra.Command, args []string) { a.exit = p.run(a, cmd.Context(), args) },
		})
	}
	return all
}
