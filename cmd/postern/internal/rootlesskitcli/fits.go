package rootlesskitcli

import (
	"fmt"
	"slices"
	"strings"
)

// fits says which port drivers go with a network, as RootlessKit has it (3.3; 1.1 knows
// less). Any goes with our own.
var fits = map[string][]string{
	netHost:            {"none"},
	netNone:            {"none", "builtin"},
	"slirp4netns":      {"none", "builtin", "slirp4netns"},
	"pasta":            {"none", "implicit", "pesto"},
	"vpnkit":           {"none", "builtin"},
	"gvisor-tap-vsock": {"none", "builtin", "gvisor-tap-vsock"},
}

// networks are where a port driver goes, in the order of the help text.
var networks = []string{netNone, "slirp4netns", "pasta", "vpnkit", "gvisor-tap-vsock"}

// checkFit refuses a port driver that does not go with the network, and says what does.
func checkFit(network, driver string) error {
	drivers, limited := fits[network]
	if !limited || slices.Contains(drivers, driver) {
		return nil
	}
	with := []string{"postern"}
	for _, n := range networks {
		if slices.Contains(fits[n], driver) {
			with = append(with, n)
		}
	}
	return fmt.Errorf("--port-driver=%s does not go with --net=%s; use --port-driver=%s, or --net=%s",
		driver, network, strings.Join(drivers, " or "), strings.Join(with, " or "))
}
