package supervisor

import (
	"github.com/postern-net/postern/proto/dns"
)

// HostFiles are the resolv.conf and the hosts file that a container of that name
// gets under a configuration, for those who mount them before there is an instance.
func HostFiles(cfg Config, host dns.ResolvConf, hostname string) (resolvConfText, hostsText []byte, err error) {
	cfg.Stderr = nil // what is turned off is said when the instance starts
	if err := prepare(&cfg); err != nil {
		return nil, nil, err
	}
	return resolvConf(&cfg, host), hostsFile(cfg.Plan, hostname), nil
}
