package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDropinRootlessKitOptions: the options of RootlessKit that its callers' scripts do
// not give.
func TestDropinRootlessKitOptions(t *testing.T) {
	table := newDropinTable(t, "RootlessKit's other options")
	for _, c := range []struct{ version, slirp string }{{"1", "real"}, {"1", "postern"}, {"3", "postern"}, {"postern", ""}} {
		t.Run(c.version+" "+c.slirp, func(t *testing.T) {
			a := ordinary(t)
			k := newRootlessKit(t, a, c.version, c.slirp, false, "builtin")
			k.flags = []string{"--net=slirp4netns", "--mtu=1500", "--cidr=10.7.0.0/24", "--ifname=tap1", "--slirp4netns-sandbox=true",
				"--slirp4netns-seccomp=true", "--copy-up=/etc", "--pidns", "--utsns", "--ipcns"}
			b := newBanners(t)
			var r *runningKit
			table.run(t, k.name, "starts", k.invocation(), func(*testing.T) string {
				r = k.boot(t, t, a, a.runtime+"/kit", nil, `touch "$1" && exec cat`)
				return ""
			})
			table.run(t, k.name, "addresses", "", func(t *testing.T) string {
				out := r.mustInside(t, "ip", "-o", "-4", "addr", "show", "dev", "tap1") + r.mustInside(t, "ip", "-o", "link", "show", "dev", "tap1")
				if !strings.Contains(out, " inet 10.7.0.100/24 ") || !strings.Contains(out, " mtu 1500 ") {
					t.Errorf("the interface: %s", out)
				}
				return ""
			})
			table.run(t, k.name, "out, by name", "", func(t *testing.T) string {
				if got := r.mustInside(t, probe(), "@fetch", url(remote4), url("web.e2e.test")); got != greeting+"\n"+greeting+"\n" {
					t.Errorf("fetched %q", got)
				}
				if got := r.mustInside(t, "cat", "/etc/resolv.conf"); !strings.HasPrefix(got, "nameserver 10.7.0.3\n") {
					t.Errorf("resolv.conf: %q", got)
				}
				return ""
			})
			table.run(t, k.name, "host's loopback open", "", func(t *testing.T) string {
				if out := r.mustInside(t, probe(), "@dial", "tcp", "10.7.0.2:"+b.local); !strings.Contains(out, " connected ") {
					t.Errorf("from inside: %s", out)
				}
				return ""
			})
			table.run(t, k.name, "namespaces of its own", "", func(t *testing.T) string {
				for _, name := range []string{"uts", "ipc", "pid_for_children"} {
					ours, err1 := os.Readlink("/proc/self/ns/" + name)
					its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", r.child(), name))
					if err := errors.Join(err1, err2); err != nil || ours == its {
						t.Errorf("namespace %s: %q, %v", name, its, err)
					}
				}
				return ""
			})
			table.run(t, k.name, "stop leaves nothing", "", func(t *testing.T) string {
				r.stop(t, 0)
				return ""
			})
		})
	}
}
