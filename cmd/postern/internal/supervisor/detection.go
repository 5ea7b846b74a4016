package supervisor

import (
	"strings"

	"github.com/postern-net/postern/userns/join"
)

// skipDetection switches duplicate address detection off on an interface that gets its
// IPv6 addresses from our advertisements: nobody else is on the link, and for a second
// or two (RFC 4862, section 5.4) there would be a default route and no address to use
// it with. Linux then connects from ::1, and such a connection never recovers.
//
// Addresses that we set ourselves need no detection to begin with. It has to be done
// before the link has a carrier; where the setting cannot be written, all is only slower.
func skipDetection(t *join.Target, cfg *Config) {
	if cfg.Configure || !cfg.Plan.V6.On() || strings.Contains(cfg.IfName, "/") {
		return
	}
	_, settings, err := t.Make(nil, "ipv6/conf/"+cfg.IfName+"/accept_dad")
	if err != nil || settings[0] == nil {
		return // there is no such interface yet, or no IPv6
	}
	_, _ = settings[0].WriteAt([]byte("0"), 0)
	closeFiles(settings[0])
}
