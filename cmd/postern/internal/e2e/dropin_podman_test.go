package e2e

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Networks that containers are given.
const (
	slirpNet   = "slirp4netns"
	slirpPorts = slirpNet + ":port_handler=slirp4netns"
)

// podmanRun is how the table writes a command.
func podmanRun(network, rest string) string { return "podman run --network " + network + " " + rest }

// TestPodman: Podman does with postern as its slirp4netns what it does with its own.
func TestPodman(t *testing.T) {
	overEngines(t, func(t *testing.T, p *podman) {
		p.outCases(t)
		p.bridgeCases(t)
		p.optionCases(t)
		p.tryRefused(t)
		p.userCases(t)
		p.hostCases(t)
		p.portCases(t)
		p.lifeCases(t)
		p.tryWithoutTUN(t)
	})
}

// try runs a case for p.
func (p *podman) try(t *testing.T, name, command string, f func(t *testing.T) string) {
	t.Helper()
	p.table.run(t, p.caller, name, command, f)
}

// wants wants words in a text.
func wants(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("no %q in\n%s", word, text)
		}
	}
}

// untilV6 runs a command of the container's again until it succeeds: the address comes
// with an advertisement, which nobody waits for.
func untilV6(command string) []string {
	return []string{"sh", "-c", "for i in $(seq 100); do { " + command + "; } 2>/tmp/said && exit 0; sleep 0.1; done; cat /tmp/said; exit 1"}
}

// outCases are about ways out of the container.
func (p *podman) outCases(t *testing.T) {
	p.try(t, "starts", podmanRun(slirpNet, "--rm IMAGE id -u"), func(t *testing.T) string {
		if out := p.once(t, slirpNet, "id", "-u"); out != "0" {
			t.Errorf("id -u: %q", out)
		}
		return ""
	})
	p.try(t, "found in PATH", "PATH=DIR:$PATH "+podmanRun(slirpNet, "--rm IMAGE id -u"), func(t *testing.T) string {
		dir := p.program[:strings.LastIndexByte(p.program, '/')]
		line := "network_cmd_path = \"" + p.program + "\""
		p.writeConf(t, "")
		defer p.writeConf(t, line)
		before := p.env
		p.env = append(append([]string(nil), p.env...), "PATH="+dir+":/usr/sbin:/usr/bin:/sbin:/bin")
		defer func() { p.env = before }()
		p.must(t, p.with(slirpNet, "--detach", "--name", "path", podmanImage, "sleep", "1000")...)
		defer p.remove(t, "path")
		if proc := p.main(t); !strings.Contains(proc.command, " --netns-type=path ") {
			t.Errorf("runs %s", proc.command)
		}
		return ""
	})
	p.try(t, "IPv4 TCP and UDP out", podmanRun(slirpNet, "--rm IMAGE …"), func(t *testing.T) string {
		p.once(t, slirpNet, "sh", "-c", "/probe @many 4 40 "+remote4+" && /probe @udpecho "+remote4+" 1400 20")
		return ""
	})
	p.try(t, "8 MiB each way, hashed, half-closed", podmanRun(slirpNet, "--rm IMAGE …"), func(t *testing.T) string {
		p.once(t, slirpNet, "/probe", "@transfer", remote4, "8388608")
		return ""
	})
	p.try(t, "ping", podmanRun(slirpNet, "--rm IMAGE ping -c1 REMOTE"), func(t *testing.T) string {
		wants(t, p.once(t, slirpNet, "ping", "-c1", "-W9", remote4), "1 packets received")
		return ""
	})
	p.try(t, "IPv6 TCP and UDP out", podmanRun(slirpNet+":enable_ipv6=true", "--rm IMAGE …"), func(t *testing.T) string {
		p.once(t, slirpNet+":enable_ipv6=true", untilV6("/probe @good "+remote6+" 3 && /probe @udpecho "+remote6+" 1200 20")...)
		return ""
	})
	p.try(t, "DNS", podmanRun(slirpNet, "--rm IMAGE nslookup …"), func(t *testing.T) string {
		out := p.once(t, slirpNet, "sh", "-c", "/probe @lookup 10.0.2.3 TXT server.e2e.test 1; /probe @lookup 10.0.2.3 A web.e2e.test 20; /probe @fetch "+url("web")+" "+url("both.e2e.test"))
		wants(t, out, `"one"`, remote4, greeting+"\n"+greeting)
		return ""
	})
	p.try(t, "DNS of a resolver on 127.0.0.53", "echo nameserver 127.0.0.53 >/etc/resolv.conf; "+podmanRun(slirpNet, "--rm IMAGE …"), p.stubResolver)
	p.try(t, "podman build", "podman build --network slirp4netns .", p.build)
}

// stubResolver: the host's only name server is one on its loopback interface.
func (p *podman) stubResolver(t *testing.T) string {
	const path = "/etc/resolv.conf"
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stub(t)
	if err := os.WriteFile(path, []byte("nameserver 127.0.0.53\nsearch e2e.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.WriteFile(path, before, 0o644) }()
	out := p.once(t, slirpNet, "sh", "-c", "cat /etc/resolv.conf; /probe @lookup 10.0.2.3 TXT server.e2e.test 1; /probe @fetch "+url("web"))
	wants(t, out, "nameserver 10.0.2.3\n", `"stub"`, greeting)
	if strings.Contains(out, "127.0.0.53") {
		t.Errorf("the host's loopback address is in the container's resolv.conf:\n%s", out)
	}
	return ""
}

// build builds an image with a step that needs the network: Podman's Buildah gives the
// process id of the step's container and no configuration of its own.
func (p *podman) build(t *testing.T) string {
	file := "FROM " + podmanImage + "\nRUN cat /etc/resolv.conf && ip -4 addr show tap0 && /probe @good " + remote4 + " 3 && /probe @fetch " + url("web.e2e.test") + "\n"
	if err := os.WriteFile(p.runtime+"/Containerfile", []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(p.runtime + "/Containerfile")
	p.must(t, "images") // makes a directory that stays
	before := p.look(t)
	o := p.call(t, "build", "--no-cache", "--force-rm", "--tag", "built", "--volume", probe()+":/probe:ro", "--file", p.runtime+"/Containerfile", p.runtime+"/tmp")
	if o.code != 0 {
		t.Fatalf("podman build: exit code %d: %s%s", o.code, o.out, o.err)
	}
	wants(t, o.out, "nameserver 10.0.2.3", "10.0.2.100/24", greeting)
	p.must(t, "rmi", "--force", "built")
	p.nothingNew(t, before, "podman build")
	return ""
}

// optionCases are about slirp4netns's options as Podman names them.
func (p *podman) optionCases(t *testing.T) {
	show := []string{"sh", "-c", "ip -4 -o addr show tap0; ip link show tap0; ip route; cat /etc/resolv.conf"}
	p.try(t, "addresses, routes, MTU, resolv.conf", podmanRun(slirpNet, "--rm IMAGE ip addr"), func(t *testing.T) string {
		wants(t, p.once(t, slirpNet, show...), "10.0.2.100/24", "mtu 65520", "default via 10.0.2.2 dev tap0", "nameserver 10.0.2.3\nnameserver "+remote4, "search e2e.test")
		return ""
	})
	const cidr = slirpNet + ":cidr=10.77.0.0/16"
	p.try(t, "cidr=", podmanRun(cidr, "--rm IMAGE …"), func(t *testing.T) string {
		wants(t, p.once(t, cidr, show...), "10.77.0.100/16", "default via 10.77.0.2 dev tap0", "nameserver 10.77.0.3\n")
		wants(t, p.once(t, cidr, "/probe", "@fetch", url("web.e2e.test")), greeting)
		return ""
	})
	const mtu = slirpNet + ":mtu=1500"
	p.try(t, "mtu=", podmanRun(mtu, "--rm IMAGE …"), func(t *testing.T) string {
		wants(t, p.once(t, mtu, show...), "mtu 1500")
		p.once(t, mtu, "/probe", "@transfer", remote4, "8388608")
		return ""
	})
	p.try(t, "outbound_addr=ADDRESS", podmanRun(slirpNet+":outbound_addr=10.98.0.9", "--rm IMAGE …"), func(t *testing.T) string {
		return p.leavesFrom(t, "10.98.0.9", slirpNet+":outbound_addr=10.98.0.9", "tcp4", remote4)
	})
	p.try(t, "outbound_addr=INTERFACE", podmanRun(slirpNet+":outbound_addr=eth0", "--rm IMAGE …"), func(t *testing.T) string {
		return p.leavesFrom(t, "", slirpNet+":outbound_addr=eth0", "tcp4", remote4)
	})
	p.try(t, "outbound_addr6=", podmanRun(slirpNet+":outbound_addr6=fd98::9,enable_ipv6=true", "--rm IMAGE …"), func(t *testing.T) string {
		return p.leavesFrom(t, "fd98::9", slirpNet+":outbound_addr6=fd98::9,enable_ipv6=true", "tcp6", remote6)
	})
}

// leavesFrom: the remote sees the given address of the host's as the client's.
func (p *podman) leavesFrom(t *testing.T, addr, network, proto, remote string) string {
	want := "seen " + host4 + ":"
	if addr != "" {
		suffix := "/24"
		want = "seen " + addr + ":"
		if proto == "tcp6" {
			suffix, want = "/64", "seen ["+addr+"]:"
		}
		hostAddress(t, addr+suffix)
	}
	to := net.JoinHostPort(remote, "17000")
	remoteWitness(t, proto+","+to)
	out := p.once(t, network, untilV6("/probe @ask "+proto+" "+to)...)
	if !strings.HasPrefix(out, want) {
		t.Errorf("the remote says %q, want %q", out, want)
	}
	return ""
}

// hostCases are about reaching the host.
func (p *podman) hostCases(t *testing.T) {
	const port = "17001"
	_, end := p.hostWitness(t, "tcp4,127.0.0.1:"+port, "tcp4,"+host4+":"+port, "udp4,127.0.0.1:"+port)
	defer end()
	const allowed, denied = slirpNet + ":allow_host_loopback=true", slirpNet + ":allow_host_loopback=false"
	p.try(t, "allow_host_loopback=true", podmanRun(allowed, "--rm IMAGE …"), func(t *testing.T) string {
		out := p.once(t, allowed, "sh", "-c", "/probe @ask tcp4 10.0.2.2:"+port+" && /probe @ask udp4 10.0.2.2:"+port)
		wants(t, out, "seen 127.0.0.1:")
		return ""
	})
	p.try(t, "allow_host_loopback=false", podmanRun(denied, "--rm IMAGE …"), func(t *testing.T) string {
		out := p.once(t, denied, "/probe", "@dial", "tcp4", "10.0.2.2:"+port)
		if strings.Contains(out, "connected") {
			t.Errorf("%s", out)
		}
		return strings.Fields(out + " ? ?")[1]
	})
	for _, network := range []string{slirpNet, allowed} {
		p.try(t, "host.containers.internal, "+network, podmanRun(network, "--rm IMAGE cat /etc/hosts"), func(t *testing.T) string {
			out := p.once(t, network, "sh", "-c", "hostname; cat /etc/hosts; /probe @ask tcp4 host.containers.internal:"+port)
			wants(t, out, "10.0.2.100\t"+lineOf(out, 0), "seen ")
			for line := range strings.Lines(out) {
				if strings.Contains(line, "host.containers.internal") {
					return strings.Fields(line)[0]
				}
			}
			t.Errorf("no host.containers.internal in\n%s", out)
			return ""
		})
	}
}

// stub runs a name server on the host's loopback interface until the test ends.
func stub(t testing.TB) {
	t.Helper()
	handler, err := newZone("stub")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: u, Handler: handler}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { u.Close() })
}
