package rootlesskitcli

import (
	"strings"
	"testing"
)

// TestFits: networks and port drivers as RootlessKit 3.3 takes and refuses them, tried
// one by one; gvisor-tap-vsock as its source has it. Refusals are one line with a
// remedy, and the remedy works.
func TestFits(t *testing.T) {
	drivers := []string{"none", "implicit", "builtin", "slirp4netns", "gvisor-tap-vsock", "pesto"}
	for network, taken := range map[string]string{
		"host":             "+-----",
		"none":             "+-+---",
		"slirp4netns":      "+-++--",
		"pasta":            "++---+",
		"vpnkit":           "+-+---",
		"gvisor-tap-vsock": "+-+-+-",
		"postern":          "++++++",
	} {
		for i, driver := range drivers {
			line := "--net=" + network + " --port-driver=" + driver
			_, _, err := configured(append(strings.Fields(line), "true")...)
			if (err == nil) != (taken[i] == '+') {
				t.Errorf("%s: %v", line, err)
				continue
			}
			if err == nil {
				continue
			}
			_, remedies, found := strings.Cut(err.Error(), "; use --port-driver=")
			others, nets, more := strings.Cut(remedies, ", or --net=")
			if !found || !more || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q: want one line with remedies", line, err)
			}
			for other := range strings.SplitSeq(others, " or ") {
				if _, _, err := configured("--net="+network, "--port-driver="+other, "true"); err != nil {
					t.Errorf("%s: the remedy --port-driver=%s: %v", line, other, err)
				}
			}
			for other := range strings.SplitSeq(nets, " or ") {
				if _, _, err := configured("--net="+other, "--port-driver="+driver, "true"); err != nil {
					t.Errorf("%s: the remedy --net=%s: %v", line, other, err)
				}
			}
		}
	}
}
