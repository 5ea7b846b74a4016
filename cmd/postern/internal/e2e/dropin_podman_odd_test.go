package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tryWithoutTUN: on a machine without /dev/net/tun there is a packet socket.
func (p *podman) tryWithoutTUN(t *testing.T) {
	p.try(t, "without /dev/net/tun", podmanRun(slirpNet, "--rm IMAGE …"), func(t *testing.T) string {
		// Its process that keeps the namespaces also keeps the device.
		p.endPause(t)
		defer p.endPause(t)
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		args := []string{"@mounts", "tun", fmt.Sprint(p.uid), fmt.Sprint(p.gid), p.path, "--log-level=error"}
		command := []string{"--rm", podmanImage, "sh", "-c", "/probe @many 4 40 " + remote4 + " && /probe @fetch " + url("web.e2e.test")}
		cmd := p.cmd(ctx, probe(), append(args, p.with(slirpNet, command...)...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		o := finish(cmd)
		if !p.ours && o.code != 0 && strings.Contains(o.err, "/dev/net/tun") {
			return "✗ fails without it"
		}
		if o.code != 0 {
			t.Errorf("exit code %d: %s%s", o.code, o.out, o.err)
		}
		wants(t, o.out, greeting)
		return ""
	})
}

// userCases are about user namespaces of a container's own, in which runc makes the
// network namespace before anybody has an endpoint in it.
func (p *podman) userCases(t *testing.T) {
	for _, network := range []string{slirpNet, slirpPorts} {
		p.try(t, "--userns=keep-id, "+network, podmanRun(network, "--userns=keep-id -p 18080:80 --rm IMAGE …"), func(t *testing.T) string {
			before := p.look(t)
			p.serve(t, "kept", network, "--userns", "keep-id", "--user", "0", "--publish", podmanPort+":80")
			client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
			wants(t, p.must(t, "exec", "kept", "sh", "-c", "cat /proc/self/uid_map; /probe @fetch "+url("web.e2e.test")), fmt.Sprint(p.uid), greeting)
			p.remove(t, "kept")
			p.nothingNew(t, before, "podman rm -f")
			return ""
		})
	}
}

// tryRefused: what slirp4netns refuses makes the start fail, with its reason.
func (p *podman) tryRefused(t *testing.T) {
	const network = slirpNet + ":cidr=10.0.2.5/24"
	p.try(t, "cidr= that is refused", podmanRun(network, "--rm IMAGE true"), func(t *testing.T) string {
		before := p.look(t)
		o := p.call(t, p.with(network, "--rm", podmanImage, "true")...)
		if o.code != 126 {
			t.Errorf("exit code %d", o.code)
		}
		wants(t, o.err, p.program+" failed: ", "10.0.2.0/24")
		p.nothingNew(t, before, "a start that was refused")
		return ""
	})
}

// bridgeCases are about a network that containers share: Podman makes one network
// namespace for all of a user's, with its slirp4netns and the bridges in it.
func (p *podman) bridgeCases(t *testing.T) {
	p.try(t, "bridge network", "podman network create net; podman run --network net -d -p 18080:80 IMAGE", func(t *testing.T) string {
		before := p.look(t)
		p.must(t, "network", "create", "--disable-dns", "net")
		t.Cleanup(func() { p.call(t, "network", "rm", "--force", "net") })
		p.serve(t, "bridged", "net", "--publish", podmanPort+":80")
		e := client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
		p.must(t, "exec", "bridged", "/probe", "@many", "4", "40", remote4)
		addr := p.must(t, "inspect", "--format", "{{.NetworkSettings.Networks.net.IPAddress}}", "bridged")
		out := p.once(t, "net", "sh", "-c", "cat /etc/resolv.conf; /probe @ask tcp4 "+addr+":80; /probe @fetch "+url("web.e2e.test"))
		wants(t, out, "seen 10.89.", greeting)
		p.main(t)
		p.remove(t, "bridged")
		p.must(t, "network", "rm", "net")
		p.nothingNew(t, before, "podman rm -f and network rm")
		return "client seen: " + e.seen.Addr().String()
	})
}
