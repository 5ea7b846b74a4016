package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// dropinTable collects what callers of the programs that postern stands in for get,
// and prints it as a Markdown table: cases down, callers across.
type dropinTable struct {
	title string

	mu             sync.Mutex
	callers, cases []string
	cells          map[[2]string]string // by caller and case
	commands       map[string]string    // by case
}

// newDropinTable returns a table that is printed when the test ends, if it is verbose.
func newDropinTable(t testing.TB, title string) *dropinTable {
	d := &dropinTable{title: title, cells: map[[2]string]string{}, commands: map[string]string{}}
	t.Cleanup(func() {
		if testing.Verbose() {
			fmt.Print(d)
		}
	})
	return d
}

// run runs a case as a subtest and notes how it ended; f returns a remark for the
// table, or "". A remark that begins with ✗ is about what the original is known not to
// do, and no failure. The command is what the caller was called with, as a user would write it.
func (d *dropinTable) run(t *testing.T, caller, name, command string, f func(t *testing.T) (remark string)) {
	t.Helper()
	remark, ran, skipped := "", false, false
	passed := t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
		ran = true
		defer func() { skipped = t.Skipped() }()
		remark = f(t)
	})
	switch {
	case !ran: // go test -run names others
		return
	case skipped:
		remark = "– skipped"
	case passed && strings.HasPrefix(remark, "✗"):
	case passed:
		remark = strings.TrimSpace("✓ " + remark)
	default:
		remark = strings.TrimSpace("✗ " + remark)
	}
	d.note(caller, name, command, remark)
}

// notApplicable notes that a case has no meaning for a caller.
func (d *dropinTable) notApplicable(caller, name, why string) {
	d.note(caller, name, "", "n/a "+why)
}

func (d *dropinTable) note(caller, name, command, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.callers, caller) {
		d.callers = append(d.callers, caller)
	}
	if !slices.Contains(d.cases, name) {
		d.cases = append(d.cases, name)
	}
	d.cells[[2]string{caller, name}] = text
	if d.commands[name] == "" {
		d.commands[name] = command
	}
}

// String returns the table in Markdown. A case that a caller was not put to has an
// empty cell.
func (d *dropinTable) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	row := func(cells ...string) {
		for n, cell := range cells {
			cells[n] = strings.ReplaceAll(strings.ReplaceAll(cell, "\n", " "), "|", `\|`)
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintf(&b, "\n%s\n\n", d.title)
	row(slices.Concat([]string{"case"}, d.callers, []string{"command"})...)
	fmt.Fprintf(&b, "|%s\n", strings.Repeat(" --- |", len(d.callers)+2))
	for _, name := range d.cases {
		cells := []string{name}
		for _, caller := range d.callers {
			cells = append(cells, d.cells[[2]string{caller, name}])
		}
		if command := d.commands[name]; command != "" {
			command = "`" + command + "`"
			cells = append(cells, command)
		} else {
			cells = append(cells, "")
		}
		row(cells...)
	}
	return b.String()
}
