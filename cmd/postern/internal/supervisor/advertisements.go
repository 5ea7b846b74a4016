package supervisor

import (
	"os"
	"strings"

	"github.com/postern-net/postern/userns/join"
)

// expectAdvertisements prepares an interface that gets its IPv6 addresses and its default
// route from our advertisements. Nobody else is on the link.
//
// There is no duplicate address detection: for a second or two (RFC 4862, section 5.4)
// there would be a default route and no address to use it with. Linux then connects from
// ::1, and such a connection never recovers. Addresses that we set ourselves need no
// detection to begin with.
//
// Advertisements count where the namespace forwards, too (accept_ra 2,
// Documentation/networking/ip-sysctl). Docker and CNI switch forwarding on for their
// bridges, and as accept_ra is by default, 1, Linux drops the default route at that
// moment and never takes it again. Who has switched advertisements off has meant it.
//
// It has to be done before the link has a carrier; where a setting cannot be written, the
// interface is as slirp4netns leaves it.
func expectAdvertisements(t *join.Target, cfg *Config) {
	if cfg.Configure || !cfg.Plan.V6.On() || strings.Contains(cfg.IfName, "/") {
		return
	}
	dir := "ipv6/conf/" + cfg.IfName + "/"
	_, settings, err := t.Make(nil, dir+"accept_dad", dir+"accept_ra")
	if err != nil {
		return
	}
	defer closeFiles(settings...) // nil: there is no such interface yet, or no IPv6
	if dad := settings[0]; dad != nil {
		_, _ = dad.WriteAt([]byte("0"), 0)
	}
	if ra := settings[1]; ra != nil && readSetting(ra) == "1" {
		_, _ = ra.WriteAt([]byte("2"), 0)
	}
}

// readSetting returns the number in a sysctl's file, empty if it cannot be read.
func readSetting(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	return strings.TrimSpace(string(b[:n]))
}
