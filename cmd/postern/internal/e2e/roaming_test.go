package e2e

import (
	"os"
	"strings"
	"testing"
	"time"
)

// roams is a running instance that the host moves under.
func roams(t *testing.T, endpoint string) *inst {
	t.Helper()
	i := ordinary(t).start(t, "roam", "--endpoint", endpoint)
	i.mustExec(t, probe(), "@good", remote4, "1")
	i.mustExec(t, probe(), "@good", remote6, "1")
	return i
}

// back waits until something works again, and logs the time since the change.
func (i *inst) back(t *testing.T, what string, changed time.Time, args ...string) {
	t.Helper()
	err := eventually(patience, func() error {
		o := i.exec(t, append([]string{probe()}, args...)...)
		return failIf(o.code != 0, "%s", o.err)
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	t.Logf("%s: works %v after the change", what, time.Since(changed).Round(time.Millisecond))
}

// TestRoamingAddress: other addresses, another default route, a link that was
// down: new connects work without a restart (H1).
func TestRoamingAddress(t *testing.T) {
	restore := func() {
		if err := ip("addr flush dev eth0 to 10.98.0.0/24", "addr add "+host4+"/24 dev eth0",
			"addr flush dev eth0 to fd98::/64", "addr add "+host6+"/64 dev eth0 nodad"); err != nil {
			t.Fatal(err)
		}
		if err := defaultRoutes(); err != nil {
			t.Fatal(err)
		}
	}
	overKinds(t, func(t *testing.T, endpoint string) {
		i := roams(t, endpoint)
		defer restore()
		steps := []struct {
			what  string
			lines []string
		}{
			{"another IPv4 address", []string{"addr del " + host4 + "/24 dev eth0", "addr add 10.98.0.9/24 dev eth0", "route replace default via " + second4}},
			{"another IPv6 address", []string{"addr del " + host6 + "/64 dev eth0", "addr add fd98::9/64 dev eth0 nodad", "-6 route replace default via " + remote6}},
			{"a link that was down", []string{"link set eth0 down", "link set eth0 up", "addr replace fd98::9/64 dev eth0 nodad"}},
		}
		for _, step := range steps {
			if err := ip(step.lines...); err != nil {
				t.Fatal(err)
			}
			changed := time.Now()
			i.back(t, step.what+", TCP over IPv4", changed, "@good", remote4, "3")
			i.back(t, step.what+", TCP over IPv6", changed, "@good", remote6, "3")
			i.back(t, step.what+", UDP", changed, "@udpecho", remote4, "1000", "3")
			i.back(t, step.what+", names", changed, "@lookup", "10.0.2.3", "A", "web.e2e.test", "3")
		}
		if s := i.mustStatus(t); s.EngineRestarts != 0 {
			t.Errorf("%d restarts", s.EngineRestarts)
		}
	})
}

const (
	resolvOne = "nameserver " + remote4 + "\nsearch e2e.test\n"
	resolvTwo = "nameserver " + second4 + "\nsearch e2e.test\n"
)

// answers waits until name service comes from a server; "" means that it fails.
func (i *inst) answers(t *testing.T, what, server string) {
	t.Helper()
	changed := time.Now()
	err := eventually(patience, func() error {
		o := i.exec(t, probe(), "@lookup", "10.0.2.3", "TXT", "server.e2e.test", "1")
		if server == "" {
			return failIf(!strings.Contains(o.err, "SERVFAIL"), "%s%s", o.out, o.err)
		}
		return failIf(strings.TrimSpace(o.out) != `"`+server+`"`, "%s%s", o.out, o.err)
	})
	if err != nil {
		t.Errorf("%s: want server %q: %v; upstreams %v", what, server, err, i.mustStatus(t).Upstreams)
		return
	}
	t.Logf("%s: followed within %v", what, time.Since(changed).Round(time.Millisecond))
}

// TestRoamingResolver: the host's resolv.conf is followed, whatever way it changes,
// and nobody else is ever asked (H2).
func TestRoamingResolver(t *testing.T) {
	const path = "/etc/resolv.conf"
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	replace := func(text string) {
		t.Helper()
		check(os.WriteFile(path+".new", []byte(text), 0o644))
		check(os.Rename(path+".new", path))
	}
	retarget := func(to string) {
		t.Helper()
		check(os.Symlink(to, path+".new"))
		check(os.Rename(path+".new", path))
	}
	check(os.WriteFile("/etc/resolv.two", []byte(resolvTwo), 0o644))
	defer replace(resolvOne)
	overKinds(t, func(t *testing.T, endpoint string) {
		replace(resolvOne)
		check(os.WriteFile("/etc/resolv.one", []byte(resolvOne), 0o644))
		i := roams(t, endpoint)
		i.mayTalk = true
		i.answers(t, "at the start", "one")
		replace(resolvTwo)
		i.answers(t, "replaced", "two")
		check(os.WriteFile(path, []byte(resolvOne), 0o644))
		i.answers(t, "written in place", "one")
		retarget("/etc/resolv.two")
		i.answers(t, "made a symbolic link", "two")
		retarget("resolv.one")
		i.answers(t, "retargeted", "one")
		check(os.WriteFile("/etc/resolv.one", []byte(resolvTwo), 0o644))
		i.answers(t, "the link's target written", "two")
		check(os.WriteFile(path, nil, 0o644))
		i.answers(t, "emptied", "")
		replace(resolvTwo)
		i.answers(t, "filled again", "two")
		check(os.Remove(path))
		replace(resolvOne)
		i.answers(t, "removed and made again", "one")
		// A first server that does not answer delays, no more.
		replace("nameserver " + blackhole4 + "\n" + resolvTwo)
		i.answers(t, "the first server is dead", "two")
	})
}

// TestResolverFileIsOwn: the command's resolv.conf is not the host's, and follows
// its search list.
func TestResolverFileIsOwn(t *testing.T) {
	a := ordinary(t)
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	out := a.mustRun(t, nil, "sh", "-c", "cat /etc/resolv.conf; echo mine >/etc/resolv.conf; echo mine >/etc/hosts; cat /etc/resolv.conf /etc/hosts")
	if out != "nameserver 10.0.2.3\nnameserver fd00::3\nsearch e2e.test\nmine\nmine\n" {
		t.Errorf("the command's file: %q", out)
	}
	if after, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(after) != string(before) {
		t.Errorf("the host's file became %q (%v)", after, err)
	}
}
