package drivertest

import (
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"
)

// table is what servers saw of their clients.
type table struct{ rows []string }

func (t *table) add(proto string, f family, from place, to string, client, seen netip.AddrPort) {
	note := "as it is"
	if client != seen {
		note = ""
	}
	t.rows = append(t.rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s", proto, f, from.name, to, client, seen, note))
}

// String is the table as text.
func (t *table) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "proto\tfamily\tclient on\tcontainer's\tclient\tserver saw\t")
	for _, row := range t.rows {
		fmt.Fprintln(w, row)
	}
	w.Flush()
	return b.String()
}
