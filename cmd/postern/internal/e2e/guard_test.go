package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// refused are addresses that no container reaches, unless asked for.
var refused = []string{
	"127.0.0.1", "127.0.0.53", "127.1.2.3", "0.0.0.0", "255.255.255.255", "10.0.2.255", "224.0.0.1", "240.0.0.1",
	metadata4,
	"::", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", linkLocal, metadata6,
}

// owned are the engine's own addresses. They answer pings, and name service.
var owned = []string{"10.0.2.2", "fd00::2", "10.0.2.3", "fd00::3"}

// try has a role try a list inside the instance.
func (i *inst) try(t testing.TB, role string, list []attempt) []attempt {
	t.Helper()
	input, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	o := i.execInput(t, input, probe(), role, "tap0")
	var report []attempt
	if err := json.Unmarshal([]byte(o.out), &report); err != nil || o.code != 0 || len(report) != len(list) {
		t.Fatalf("%s: exit code %d, %v\n%s\n%s", role, o.code, err, o.out, o.err)
	}
	return report
}

// wanting is the list with a result that has to come.
func wanting(want string, list []attempt) []attempt {
	list = slices.Clone(list)
	for n := range list {
		list[n].Want = want
	}
	return list
}

// expect tries a list and wants the same result for each.
func (i *inst) expect(t testing.TB, role, want string, list []attempt) {
	t.Helper()
	for _, a := range i.try(t, role, wanting(want, list)) {
		if a.Result != want {
			t.Errorf("%s: %v: %s, want %s", role, a, a.Result, want)
		}
	}
}

// overEndpoints runs a test over both endpoints, with what reaches the host's
// servers and an instance.
func overEndpoints(t *testing.T, flags []string, f func(t *testing.T, i *inst, b *banners)) {
	for _, w := range []way{{"tap", 65520}, {"packet", 1500}} {
		t.Run(w.endpoint, func(t *testing.T) {
			needEndpoint(t, w.endpoint)
			b := newBanners(t)
			i := ordinary(t).start(t, "guard", append(w.flags(), flags...)...)
			f(t, i, b)
			if s := i.mustStatus(t); s.EngineRestarts != 0 {
				t.Errorf("the engine died %d times", s.EngineRestarts)
			}
		})
	}
}

// control is what must get through: it shows that the prober can see a banner.
func control(b *banners) []attempt {
	return []attempt{
		{Proto: "tcp", Dst: addrPort(host4, b.wild)}, {Proto: "udp", Dst: addrPort(host4, b.wild)}, {Proto: "icmp", Dst: addrPort(host4, "0")},
		{Proto: "tcp", Dst: addrPort(host6, b.wild)}, {Proto: "udp", Dst: addrPort(host6, b.wild)}, {Proto: "icmp", Dst: addrPort(host6, "0")},
	}
}

// refusals are all attempts that must fail.
func refusals(b *banners, addrs []string) (list []attempt) {
	for _, addr := range addrs {
		for _, port := range []string{b.wild, b.local} {
			list = append(list, attempt{Proto: "tcp", Dst: addrPort(addr, port)}, attempt{Proto: "udp", Dst: addrPort(addr, port)})
		}
	}
	return list
}

func echoes(addrs []string) (list []attempt) {
	for _, addr := range addrs {
		list = append(list, attempt{Proto: "icmp", Dst: addrPort(addr, "0")})
	}
	return list
}

// without drops the addresses whose echo requests a kernel answers itself.
func without(addrs []string, own ...string) (list []string) {
	for _, addr := range addrs {
		if !strings.Contains(" "+strings.Join(own, " ")+" ", " "+addr+" ") {
			list = append(list, addr)
		}
	}
	return list
}

// reject tries a list of which nothing may get through, to the container or to
// the host's servers. It returns how often each result came.
func (i *inst) reject(t *testing.T, b *banners, role string, list []attempt) {
	t.Helper()
	b.seen()
	results := map[string]int{}
	for _, a := range i.try(t, role, list) {
		results[a.Result]++
		if a.Result == "banner" || a.Result == "handshake" {
			t.Errorf("%s: %v: %s", role, a, a.Result)
		}
	}
	if peers := b.seen(); len(peers) > 0 {
		t.Errorf("%s: the host's servers saw %s", role, strings.Join(peers, ", "))
	}
	t.Logf("%s: %d attempts: %v", role, len(list), results)
}

// TestGuardTable: none of the refused addresses is reached, as raw frames and
// through kernel sockets, over TCP, UDP and ICMP.
func TestGuardTable(t *testing.T) {
	overEndpoints(t, nil, func(t *testing.T, i *inst, b *banners) {
		i.expect(t, "@raw", "banner", control(b))
		i.expect(t, "@kernel", "banner", control(b))
		if n := len(b.seen()); n != 8 {
			t.Errorf("the host's servers saw %d of 8 attempts that may come", n)
		}
		list := append(refusals(b, append(refused, owned...)), echoes(refused)...)
		i.reject(t, b, "@raw", list)
		i.reject(t, b, "@kernel", refusals(b, append(refused, owned...)))
		// Bound to the interface, kernel sockets send what else stays inside; the
		// kernel still answers pings of "myself" and of a group it is in.
		bound := append(refusals(b, append(refused, owned...)), echoes(without(refused, "0.0.0.0", "::", "::1", "ff02::1"))...)
		for n := range bound {
			bound[n].Bind = true
		}
		i.reject(t, b, "@kernel", bound)
		i.expect(t, "@raw", "banner", control(b))
		t.Log(i.mustStatus(t).Counters)
	})
}

// TestGatewayAnswers: the engine's own addresses answer pings themselves.
func TestGatewayAnswers(t *testing.T) {
	overEndpoints(t, nil, func(t *testing.T, i *inst, _ *banners) {
		i.expect(t, "@raw", "banner", echoes(owned))
		i.expect(t, "@kernel", "banner", echoes(owned))
	})
}

// TestHostLoopbackOpened: --allow-host-loopback opens the gateway's addresses, and
// no other spelling of the loopback.
func TestHostLoopbackOpened(t *testing.T) {
	overEndpoints(t, []string{"--allow-host-loopback"}, func(t *testing.T, i *inst, b *banners) {
		for _, role := range []string{"@raw", "@kernel"} {
			i.expect(t, role, "banner", refusals(b, []string{"10.0.2.2", "fd00::2"}))
			for _, peer := range b.seen() {
				if !strings.Contains(peer, "from 127.0.0.1:") && !strings.Contains(peer, "from [::1]:") {
					t.Errorf("%s: the host's server saw %s, want its loopback", role, peer)
				}
			}
			i.reject(t, b, role, refusals(b, append(without(refused), "10.0.2.3", "fd00::3")))
		}
		i.reject(t, b, "@raw", echoes(refused))
	})
}

// TestHostLoopbackPorts: --allow-host-loopback=PORTS opens these ports only.
func TestHostLoopbackPorts(t *testing.T) {
	b := newBanners(t)
	overKinds(t, func(t *testing.T, endpoint string) {
		i := ordinary(t).start(t, "ports", "--endpoint", endpoint, "--allow-host-loopback="+b.local)
		gateway := []string{"10.0.2.2", "fd00::2"}
		var open, closed []attempt
		for _, a := range refusals(b, gateway) {
			if strings.HasSuffix(a.Dst.String(), ":"+b.local) {
				open = append(open, a)
			} else {
				closed = append(closed, a)
			}
		}
		for _, role := range []string{"@raw", "@kernel"} {
			i.expect(t, role, "banner", open)
			i.reject(t, b, role, append(closed, refusals(b, refused)...))
		}
	})
}

// TestSpoofing: frames that pretend to come from elsewhere get nowhere (X1).
func TestSpoofing(t *testing.T) {
	overEndpoints(t, nil, func(t *testing.T, i *inst, b *banners) {
		before := i.mustStatus(t).Counters["drop_spoofed_source"]
		sources := []string{
			"203.0.113.9", "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", host4, remote4, "10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255",
			"2001:db8::9", "::1", "::", "ff02::1", "fe80::9", host6, remote6, "fd00::2", "fd00::3", "fd00::", "::ffff:10.0.2.100",
		}
		var list []attempt
		for _, source := range sources {
			to := host4
			if netip.MustParseAddr(source).Is6() {
				to = host6
			}
			for _, proto := range []string{"tcp", "udp", "icmp"} {
				list = append(list, attempt{Proto: proto, Dst: addrPort(to, b.wild), Src: addrPort(source, "0")})
			}
		}
		i.reject(t, b, "@raw", list)
		err := eventually(patience, func() error {
			dropped := i.mustStatus(t).Counters["drop_spoofed_source"] - before
			return failIf(dropped < uint64(len(list))/2, "%d frames counted as spoofed of %d", dropped, len(list))
		})
		if err != nil {
			t.Error(err)
		}
		i.expect(t, "@raw", "banner", control(b))
	})
}

// TestForeignMAC: frames for other hardware addresses are not ours; frames from
// others do not move the answers there (X2).
func TestForeignMAC(t *testing.T) {
	overEndpoints(t, nil, func(t *testing.T, i *inst, b *banners) {
		foreign := net.HardwareAddr{2, 0, 0, 0, 0, 99}
		other, from := control(b), control(b)
		for n := range other {
			other[n].ToMAC, from[n].FromMAC = foreign, foreign
		}
		i.reject(t, b, "@raw", other)
		err := eventually(patience, func() error {
			n := i.mustStatus(t).Counters["drop_foreign_mac"]
			return failIf(n < uint64(len(other)), "%d frames counted as foreign, want %d", n, len(other))
		})
		if err != nil {
			t.Error(err)
		}
		for _, a := range i.try(t, "@raw", from) {
			if a.Result != "silence" && !a.ToUs {
				t.Errorf("%v: the answer went to another hardware address", a)
			}
		}
		for _, a := range i.try(t, "@raw", wanting("banner", control(b))) {
			if a.Result != "banner" || !a.ToUs {
				t.Errorf("afterwards: %v: %s, to us %t", a, a.Result, a.ToUs)
			}
		}
	})
}

// TestHostileFrames: claims to be the gateway, rogue advertisements, ports of zero
// and broken frames change nothing (X3 to X5).
func TestHostileFrames(t *testing.T) {
	overEndpoints(t, nil, func(t *testing.T, i *inst, b *banners) {
		t.Log(i.mustExec(t, probe(), "@frames"))
		i.expect(t, "@raw", "banner", control(b))
		i.expect(t, "@kernel", "banner", control(b))
		zero := []attempt{
			{Proto: "tcp", Dst: addrPort(host4, "0")}, {Proto: "udp", Dst: addrPort(host6, "0")},
			{Proto: "tcp", Dst: addrPort(host4, b.wild), Src: addrPort("10.0.2.77", "0"), FixPort: true},
			{Proto: "udp", Dst: addrPort(host6, b.wild), Src: addrPort("fd00::77", "0"), FixPort: true},
		}
		for _, a := range i.try(t, "@raw", zero) {
			if a.Result == "banner" || a.Result == "handshake" {
				t.Errorf("%v: %s", a, a.Result)
			}
		}
		i.expect(t, "@raw", "banner", control(b))
		t.Log(i.mustStatus(t).Counters)
	})
}

// TestSequenceNumbers: initial sequence numbers cannot be guessed from others (X7):
// no two alike, no two steps alike, and all bytes in use.
func TestSequenceNumbers(t *testing.T) {
	i := ordinary(t).start(t, "isn")
	lines := strings.Fields(i.mustExec(t, probe(), "@cycle", net.JoinHostPort(remote4, portEcho), "500"))
	seen, steps := map[string]bool{}, map[uint32]int{}
	var last uint32
	for n, line := range lines {
		isn := parseUint32(t, line)
		if seen[line] {
			t.Errorf("sequence number %s comes twice", line)
		}
		seen[line] = true
		if step := isn - last; n > 0 {
			steps[step>>16]++
		}
		last = isn
	}
	for step, times := range steps {
		// 500 steps over 65,536 classes: four in one class has odds below 1e-4.
		if times > 4 {
			t.Errorf("%d of %d steps are about %d", times, len(lines), step<<16)
		}
	}
	if len(lines) != 500 {
		t.Errorf("%d numbers, want 500", len(lines))
	}
}
