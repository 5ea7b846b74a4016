package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dockerdRootless is Debian's script, which is Docker's.
const dockerdRootless = "/usr/share/docker.io/contrib/dockerd-rootless.sh"

// dockerStory is rootless Docker over one RootlessKit.
type dockerStory struct {
	*rootlessKit
	user    account
	table   *dropinTable
	owner   *testing.T
	running *runningKit
}

// TestDropinDocker: dockerd-rootless.sh finds postern where it looks for slirp4netns, or
// for rootlesskit.
func TestDropinDocker(t *testing.T) {
	table := newDropinTable(t, "rootless Docker (dockerd-rootless.sh)")
	for _, c := range []struct{ version, slirp string }{{"1", "real"}, {"1", "postern"}, {"postern", ""}} {
		t.Run(c.version+" "+c.slirp, func(t *testing.T) {
			a := ordinary(t)
			s := &dockerStory{rootlessKit: newRootlessKit(t, a, c.version, c.slirp, false, "builtin"), user: a, table: table, owner: t}
			for _, name := range []string{"dockerd", "docker", "containerd", "runc", "iptables", "nginx", "curl", "busybox"} {
				tool(t, name)
			}
			if _, err := os.Stat(dockerdRootless); err != nil {
				missing(t, dockerdRootless+" is not installed")
			}
			if c.slirp == "real" {
				// The script takes what is first in PATH.
				if err := os.RemoveAll(a.runtime + "/bin"); err != nil {
					t.Fatal(err)
				}
			}
			s.tell(t)
		})
	}
}

func (s *dockerStory) step(t *testing.T, name, command string, f func(t *testing.T) string) {
	t.Helper()
	s.table.run(t, s.name, name, command, f)
}

// dockerIPv6 is what Docker 20.10 has to be told for IPv6 on its bridge, in daemon.json.
const dockerIPv6 = `{"ipv6": true, "ip6tables": true, "experimental": true, "fixed-cidr-v6": "fd00:105::/64"}`

// begin starts dockerd and waits until it answers.
func (s *dockerStory) begin(t *testing.T) string {
	t.Helper()
	start := time.Now()
	dir := s.user.runtime + "/docker"
	state := s.user.runtime + "/dockerd-rootless"
	cmd := s.user.command(context.Background(), dockerdRootless, "--host=unix://"+s.user.runtime+"/docker.sock", "--data-root="+dir+"/data",
		"--exec-root="+dir+"/exec", "--pidfile="+dir+"/pid", "--config-file="+dir+"/daemon.json", "--storage-driver=vfs", "--log-level=warn")
	cmd.Env = append(cmd.Env, "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--ipv6 --state-dir="+state)
	s.user.mustCommand(t, "sh", "-c", "mkdir -p "+dir+"; echo '"+dockerIPv6+"' >"+dir+"/daemon.json")
	s.running = s.bootCommand(t, s.owner, s.user, state, cmd, s.user.runtime+"/docker.sock")
	if err := eventually(patience, func() error {
		o := s.docker(t, nil, "version")
		return failIf(o.code != 0, "%s%s", o.out, o.err)
	}); err != nil {
		t.Fatalf("dockerd does not answer: %v\n%s", err, s.running.output)
	}
	return time.Since(start).Round(10 * time.Millisecond).String()
}

// docker calls the client, on the host.
func (s *dockerStory) docker(t testing.TB, input *os.File, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := s.user.command(ctx, "/usr/bin/docker", append([]string{"--host=unix://" + s.user.runtime + "/docker.sock"}, args...)...)
	if input != nil {
		cmd.Stdin = input
	}
	return finish(cmd)
}

func (s *dockerStory) mustDocker(t testing.TB, args ...string) string {
	t.Helper()
	o := s.docker(t, nil, args...)
	if o.code != 0 {
		t.Fatalf("docker %s: exit code %d: %s%s\ndockerd says:\n%s", strings.Join(args, " "), o.code, o.out, o.err, s.running.output)
	}
	return o.out
}

// nginx runs a container with published ports.
func (s *dockerStory) nginx(t *testing.T, name string, ports ...string) {
	t.Helper()
	args := []string{"run", "-d", "--name", name}
	for _, p := range ports {
		args = append(args, "-p", p)
	}
	s.mustDocker(t, append(args, "local/nginx:9", "/bin/nginx", "-c", "/etc/nginx.conf")...)
}

func (s *dockerStory) tell(t *testing.T) {
	nginxImage(t, s.user) // and its files
	s.step(t, "starts", "dockerd-rootless.sh", func(t *testing.T) string {
		took := s.begin(t)
		s.user.mustCommand(t, "tar", "-C", s.user.runtime+"/stage", "-cf", s.user.runtime+"/files.tar", ".")
		s.mustDocker(t, "import", s.user.runtime+"/files.tar", "local/nginx:9")
		return took
	})
	if t.Failed() {
		return
	}
	s.step(t, "published TCP, loopback", "docker run -p 127.0.0.1:8081:80 -p 10.98.0.1:8083:80", func(t *testing.T) string {
		s.nginx(t, "web", "127.0.0.1:8081:80", host4+":8083:80", "8081:80/udp", "[::]:8086:80")
		return "(nginx saw " + s.fetch(t, "web", nil, "127.0.0.1:8081") + ")"
	})
	if t.Failed() {
		return
	}
	s.step(t, "published TCP, network", "", func(t *testing.T) string {
		return "(nginx saw " + s.fetch(t, "web", lab.remote, host4+":8083") + ")"
	})
	s.step(t, "published UDP", "docker run -p 8081:80/udp", func(t *testing.T) string {
		_, end := awaitReady(t, s.user.command(context.Background(), "/usr/bin/docker", "--host=unix://"+s.user.runtime+"/docker.sock", "exec", "-i", "web", "/bin/probe", "@witness", "udp4,0.0.0.0:80"))
		defer end()
		remote := client{ns: lab.remote}.mustAsk(t, "udp", host4+":8081").seen.Addr().String()
		local := client{}.mustAsk(t, "udp", "127.0.0.1:8081").seen.Addr().String()
		return fmt.Sprintf("(seen: remote %s, loopback %s)", remote, local)
	})
	s.step(t, "port added while running", "docker run, again", func(t *testing.T) string {
		s.nginx(t, "second", "8084:80")
		seen := s.fetch(t, "second", lab.remote, host4+":8084")
		s.mustDocker(t, "rm", "-f", "second")
		client{ns: lab.remote}.closed(t, "tcp", host4+":8084")
		return "(nginx saw " + seen + ")"
	})
	s.step(t, "v4 out", "docker exec", func(t *testing.T) string {
		s.mustDocker(t, "exec", "web", "/bin/probe", "@many", "2", "20", remote4)
		s.mustDocker(t, "exec", "web", "/bin/probe", "@udpecho", remote4, "1200", "3")
		return ""
	})
	s.step(t, "v6 out", "docker exec, daemon.json: "+dockerIPv6, func(t *testing.T) string {
		if remark := s.sixOut(t, s.docker(t, nil, "exec", "web", "/bin/probe", "@many", "2", "20", remote6)); remark != "" {
			return remark
		}
		s.mustDocker(t, "exec", "web", "/bin/probe", "@udpecho", remote6, "1200", "3")
		return ""
	})
	s.step(t, "published TCP, IPv6", "docker run -p [::]:8086:80", func(t *testing.T) string {
		return "(nginx saw " + s.fetch(t, "web", lab.remote, "["+host6+"]:8086") + ")"
	})
	s.step(t, "DNS", "", func(t *testing.T) string {
		fetch := []string{"exec", "web", "/bin/wget", "-q", "-O", "-"}
		if !s.ours { // wget tries IPv6 only, and there is no way out for that
			fetch = []string{"exec", "web", "/bin/probe", "@fetch"}
		}
		if got := s.mustDocker(t, append(fetch, url("web.e2e.test"))...); got != greeting+"\n" {
			t.Errorf("by name: %q", got)
		}
		return ""
	})
	s.step(t, "stop leaves nothing", "", func(t *testing.T) string {
		s.mustDocker(t, "rm", "-f", "web")
		s.running.stop(t, unix.SIGTERM)
		return ""
	})
	s.step(t, "restart", "", func(t *testing.T) string {
		took := s.begin(t)
		s.nginx(t, "web", "127.0.0.1:8081:80")
		s.fetch(t, "web", nil, "127.0.0.1:8081")
		s.mustDocker(t, "rm", "-f", "web")
		s.running.stop(t, unix.SIGTERM)
		return took
	})
}

// fetch fetches the page and returns whom nginx saw.
func (s *dockerStory) fetch(t *testing.T, id string, ns *netns, addr string) string {
	t.Helper()
	logged := func() []string { return strings.Fields(s.docker(t, nil, "exec", id, "/bin/cat", "/log/access").out) }
	had := len(logged())
	fetchNginx(t, ns, addr)
	var seen []string
	if err := eventually(patience, func() error { // it writes when the client has got all
		seen = logged()
		return failIf(len(seen) <= had, "nginx has logged %v", seen)
	}); err != nil {
		t.Fatal(err)
	}
	return seen[len(seen)-1]
}
