package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDropinRootlessKit: RootlessKit has its network from postern in place of
// slirp4netns, and postern is in RootlessKit's own place. What the real programs get is
// there too, to say that the cases are true.
func TestDropinRootlessKit(t *testing.T) {
	table := newDropinTable(t, "RootlessKit with slirp4netns or postern")
	for _, c := range []struct {
		version, slirp string
		detach         bool
		driver         string
	}{
		{"1", "real", false, "slirp4netns"},
		{"1", "postern", false, "slirp4netns"},
		{"1", "postern", false, "builtin"},
		{"3", "real", true, "builtin"},
		{"3", "postern", true, "builtin"},
		{"3", "postern", true, "slirp4netns"},
		{"3", "postern", false, "builtin"},
		{"postern", "", false, "builtin"},
		{"postern", "", true, "builtin"},
	} {
		name := fmt.Sprintf("%s %s %s", c.version, c.slirp, c.driver)
		if c.detach {
			name += " detached"
		}
		t.Run(name, func(t *testing.T) {
			a := ordinary(t)
			s := &rootlessKitStory{rootlessKit: newRootlessKit(t, a, c.version, c.slirp, c.detach, c.driver), account: a, table: table, owner: t}
			s.tell(t)
		})
	}
}

// rootlessKitStory is what one RootlessKit is put through.
type rootlessKitStory struct {
	*rootlessKit
	account
	table *dropinTable
	// owner is the test that the story is.
	owner   *testing.T
	running *runningKit
}

// step is a line of the table.
func (s *rootlessKitStory) step(t *testing.T, name, command string, f func(t *testing.T) string) {
	t.Helper()
	s.table.run(t, s.name, name, command, f)
}

// Published ports of the stories.
const (
	kitTCP, kitUDP, kitLater = "0.0.0.0:17001:80/tcp", "0.0.0.0:17001:80/udp", "0.0.0.0:17002:80/tcp"
)

func (s *rootlessKitStory) tell(t *testing.T) {
	s.step(t, "starts", s.invocation("--ipv6", "-p", kitTCP, "-p", kitUDP), func(t *testing.T) string {
		return s.begin(t)
	})
	if s.running == nil {
		return
	}
	s.outward(t)
	s.inward(t)
	s.step(t, "stop leaves nothing", "", func(t *testing.T) string {
		s.running.stop(t, 0)
		return ""
	})
	s.step(t, "restart", "", func(t *testing.T) string {
		took := s.begin(t)
		s.again(t)
		s.running.stop(t, unix.SIGTERM)
		return took
	})
	s.step(t, "restart after kill -9", "", func(t *testing.T) string {
		s.begin(t)
		s.running.killed(t)
		s.begin(t)
		s.again(t)
		s.running.stop(t, 0)
		return ""
	})
}

// begin starts it so that it ends when its input does.
func (s *rootlessKitStory) begin(t *testing.T) string {
	t.Helper()
	start := time.Now()
	s.running = s.boot(t, s.owner, s.account, s.runtime+"/kit", []string{"--ipv6", "-p", kitTCP, "-p", kitUDP}, `touch "$1" && exec cat`)
	return time.Since(start).Round(10 * time.Millisecond).String()
}

// again is what works after a start as it did before.
func (s *rootlessKitStory) again(t *testing.T) {
	t.Helper()
	s.running.mustInside(t, probe(), "@many", "1", "2", remote4)
	defer s.running.witness(t, "tcp4,0.0.0.0:80")()
	s.awaitPublished(t)
}

// awaitPublished waits for a witness's published port: RootlessKit starts the command
// and opens the ports at the same time.
func (s *rootlessKitStory) awaitPublished(t *testing.T) {
	t.Helper()
	if err := eventually(patience, func() error {
		_, err := client{ns: lab.remote}.ask("tcp", host4+":17001")
		return err
	}); err != nil {
		t.Fatalf("the published port: %v", err)
	}
}

// outward tells what the command reaches.
func (s *rootlessKitStory) outward(t *testing.T) {
	for name, addr := range map[string]string{"v4 out": remote4, "v6 out": remote6} {
		s.step(t, name, "", func(t *testing.T) string {
			// The address for IPv6 comes by advertisement, some time after the start.
			if err := eventually(patience, func() error {
				o := s.running.inside(t, probe(), "@many", "1", "1", addr)
				return failIf(o.code != 0, "%s", o.err)
			}); err != nil {
				t.Fatal(err)
			}
			s.running.mustInside(t, probe(), "@many", "2", "20", addr)
			s.running.mustInside(t, probe(), "@udpecho", addr, "1200", "5")
			return ""
		})
	}
	s.step(t, "DNS", "", func(t *testing.T) string {
		if got := s.running.mustInside(t, probe(), "@lookup", "10.0.2.3", "A", "web.e2e.test", "1"); got != remote4+"\n" {
			t.Errorf("10.0.2.3 says %q", got)
		}
		if b, err := os.ReadFile(s.running.state + "/resolv.conf"); !s.old && !strings.HasPrefix(string(b), "nameserver 10.0.2.3\nnameserver fd00::3\n") {
			t.Errorf("resolv.conf in the state directory: %q, %v", b, err)
		}
		// Detached, the command's files stay the host's.
		if got := s.running.mustInside(t, "cat", "/etc/resolv.conf"); strings.HasPrefix(got, "nameserver 10.0.2.3\n") == s.detach {
			t.Errorf("/etc/resolv.conf: %q", got)
		}
		if s.detach {
			return ""
		}
		if got := s.running.mustInside(t, probe(), "@fetch", url("web.e2e.test")); got != greeting+"\n" {
			t.Errorf("by name: %q", got)
		}
		return ""
	})
	s.step(t, "host's loopback closed", "", func(t *testing.T) string {
		b := newBanners(t)
		out := s.running.mustInside(t, probe(), "@dial", "tcp", "10.0.2.2:"+b.local, "10.0.2.2:"+b.wild)
		if b.count() != 0 || strings.Contains(out, "connected") {
			t.Errorf("%s: the host saw %v", out, b.seen())
		}
		return ""
	})
}

// inward tells who reaches the command.
func (s *rootlessKitStory) inward(t *testing.T) {
	defer s.running.witness(t, "tcp4,0.0.0.0:80", "udp4,0.0.0.0:80")()
	s.awaitPublished(t)
	s.step(t, "GET /v1/info", "rootlessctl --socket STATE/api.sock info --json", func(t *testing.T) string { return s.info(t) })
	for _, network := range []string{"tcp", "udp"} {
		s.step(t, "published "+strings.ToUpper(network), "-p "+map[string]string{"tcp": kitTCP, "udp": kitUDP}[network], func(t *testing.T) string {
			remote := client{ns: lab.remote}.mustAsk(t, network, host4+":17001").seen.Addr().String()
			local := s.loopbackClient(t, network)
			// What goes through our engine keeps its address; a port that the real
			// RootlessKit forwards by itself does as it does.
			if (s.personality || s.library && s.ours && network == "tcp") && remote != remote4 {
				t.Errorf("the server saw %s for %s", remote, remote4)
			}
			return fmt.Sprintf("(seen: remote %s, loopback %s)", remote, local)
		})
	}
	s.step(t, "port added while running", "rootlessctl --socket STATE/api.sock add-ports "+kitLater, func(t *testing.T) string {
		id := strings.TrimSpace(s.running.ctl(t, "add-ports", kitLater))
		seen := client{ns: lab.remote}.mustAsk(t, "tcp", host4+":17002").seen.Addr()
		if list := s.running.ctl(t, "list-ports"); !strings.Contains(list, "17002") || !strings.Contains(list, "17001") {
			t.Errorf("list-ports: %s", list)
		}
		s.running.ctl(t, "remove-ports", id)
		client{ns: lab.remote}.closed(t, "tcp", host4+":17002")
		return fmt.Sprintf("(seen: remote %s)", seen)
	})
}

// loopbackClient returns whom the server sees when a client of the host's loopback asks.
func (s *rootlessKitStory) loopbackClient(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" && s.driver == "slirp4netns" && !s.ours {
		// libslirp makes it a client at 10.0.2.2, and --disable-host-loopback bars the
		// answers to that.
		if _, err := (client{limit: time.Second}).ask("udp", "127.0.0.1:17001"); err != nil {
			return "no answer"
		}
	}
	return client{}.mustAsk(t, network, "127.0.0.1:17001").seen.Addr().String()
}

// info reads what Docker and nerdctl ask for first.
func (s *rootlessKitStory) info(t *testing.T) string {
	t.Helper()
	var info struct {
		ChildPID      int    `json:"childPID"`
		StateDir      string `json:"stateDir"`
		NetworkDriver struct {
			Driver, ChildIP string
			DNS             []string
		}
		PortDriver struct {
			Driver                  string
			Protos                  []string
			DisallowLoopbackChildIP bool
		}
	}
	text := s.running.ctl(t, "info", "--json")
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if info.ChildPID != s.running.child() || info.StateDir != s.running.state || info.NetworkDriver.ChildIP != "10.0.2.100" ||
		len(info.NetworkDriver.DNS) == 0 || info.NetworkDriver.DNS[0] != "10.0.2.3" {
		t.Errorf("info: %s", text)
	}
	for _, proto := range []string{"tcp", "tcp4", "udp", "udp4"} {
		// RootlessKit 1.1's slirp4netns driver knows no suffixes.
		if !strings.Contains(strings.Join(info.PortDriver.Protos, " "), proto) && s.driver == "builtin" {
			t.Errorf("protocol %s is not announced: %s", proto, text)
		}
	}
	return fmt.Sprintf("(%s, %s)", info.NetworkDriver.Driver, info.PortDriver.Driver)
}
