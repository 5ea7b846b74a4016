package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// containerdRootless is what containerd-rootless.sh does inside RootlessKit, which Debian
// does not package: it takes the host's directories away and puts the user's there.
const containerdRootless = `set -e
rm -f /run/containerd /run/xtables.lock /var/lib/containerd /var/lib/cni /etc/containerd
for pair in "$XDG_RUNTIME_DIR/containerd:/run/containerd" "$2/containerd:/var/lib/containerd" "$2/cni:/var/lib/cni" "$2/config:/etc/containerd"; do
	mkdir -p "${pair%%:*}" "${pair#*:}"
	mount --bind "${pair%%:*}" "${pair#*:}"
done
cat >/etc/containerd/config.toml <<END
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[debug]
level = "warn"
END
touch "$1"
exec containerd`

// containerdFlags are what containerd-rootless.sh gives besides scriptFlags, with
// CONTAINERD_ROOTLESS_ROOTLESSKIT_IPV6=true.
var containerdFlags = []string{"--copy-up=/var/lib", "--ipv6"}

// containerdStory is containerd in one RootlessKit.
type containerdStory struct {
	*rootlessKit
	user    account
	table   *dropinTable
	owner   *testing.T
	running *runningKit
	image   string
}

// TestDropinContainerd is the story of rootless containerd with nerdctl's network: nginx
// behind a bridge, published to the host's loopback and to its network.
func TestDropinContainerd(t *testing.T) {
	table := newDropinTable(t, "containerd in RootlessKit, container behind CNI's bridge")
	for _, c := range []struct {
		version, slirp string
		detach         bool
	}{
		{"3", "real", true},
		{"1", "real", false},
		{"1", "postern", false},
		{"3", "postern", true},
		{"postern", "", false},
		{"postern", "", true},
	} {
		name := c.version + " " + c.slirp
		if c.detach {
			name += " detached"
		}
		t.Run(name, func(t *testing.T) {
			a := ordinary(t)
			s := &containerdStory{rootlessKit: newRootlessKit(t, a, c.version, c.slirp, c.detach, "builtin"), user: a, table: table, owner: t}
			for _, name := range []string{"containerd", "ctr", "runc", "nginx", "curl", "iptables", "busybox", "umoci"} {
				tool(t, name)
			}
			if _, err := os.Stat(cniPlugins + "/bridge"); err != nil {
				missing(t, "CNI's plugins are not installed")
			}
			s.tell(t)
		})
	}
}

func (s *containerdStory) step(t *testing.T, name, command string, f func(t *testing.T) string) {
	t.Helper()
	s.table.run(t, s.name, name, command, f)
}

// begin starts containerd and waits until it answers.
func (s *containerdStory) begin(t *testing.T) string {
	t.Helper()
	start := time.Now()
	s.running = s.boot(t, s.owner, s.user, s.user.runtime+"/containerd-rootless", containerdFlags, containerdRootless, s.user.runtime+"/data")
	if err := eventually(patience, func() error {
		o := s.ctr(t, "version")
		return failIf(o.code != 0, "%s%s", o.out, o.err)
	}); err != nil {
		t.Fatalf("containerd does not answer: %v\n%s", err, s.running.output)
	}
	return time.Since(start).Round(10 * time.Millisecond).String()
}

// ctr calls containerd as nerdctl does, from within its namespaces.
func (s *containerdStory) ctr(t testing.TB, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return finish(s.running.beside(ctx, append([]string{"ctr"}, args...)...))
}

func (s *containerdStory) mustCtr(t testing.TB, args ...string) string {
	t.Helper()
	o := s.ctr(t, args...)
	if o.code != 0 {
		t.Fatalf("ctr %s: exit code %d: %s%s\ncontainerd says:\n%s", strings.Join(args, " "), o.code, o.out, o.err, s.running.output)
	}
	return o.out
}

// nginxImage makes an OCI archive with nginx in it.
func nginxImage(t testing.TB, a account) string {
	t.Helper()
	stage := a.runtime + "/stage"
	var script strings.Builder
	fmt.Fprintf(&script, "set -e\nmkdir -p %[1]s/bin %[1]s/etc %[1]s/tmp %[1]s/log\ncd %[1]s\n", stage)
	for _, path := range []string{tool(t, "busybox"), tool(t, "nginx"), probe()} {
		fmt.Fprintf(&script, "cp -L %[1]s bin/\nfor l in $(ldd %[1]s | grep -o '/[^ ]*'); do mkdir -p .${l%%/*}; cp -Ln $l .$l; done\n", path)
	}
	fmt.Fprintf(&script, `for n in sh cat sleep nslookup wget; do ln -s busybox bin/$n; done
echo 'root:x:0:0::/:/bin/sh' >etc/passwd
echo 'root:x:0:' >etc/group
cat >etc/nginx.conf <<'END'
daemon off; user root; pid /tmp/pid; error_log /log/error; events {}
http {
  client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
  log_format client '$remote_addr'; access_log /log/access client;
  server { listen 0.0.0.0:80; listen [::]:80; default_type text/plain; location / { return 200 "hello from nginx\n"; } }
}
END
cd ..
u=%[1]s
$u init --layout layout
$u new --image layout:9
$u insert --rootless --image layout:9 stage /
$u config --image layout:9 --config.cmd /bin/nginx --config.cmd -c --config.cmd /etc/nginx.conf --config.env PATH=/bin
tar -C layout -cf image.tar .
`, tool(t, "umoci"))
	a.mustCommand(t, "sh", "-c", "cd "+a.runtime+"\n"+script.String())
	return a.runtime + "/image.tar"
}

// imageName is what the image is called in containerd.
const imageName = "docker.io/local/nginx:9"

// run runs a container with published ports.
func (s *containerdStory) run(t *testing.T, id string, ports ...portMapping) {
	t.Helper()
	s.runIn(t, "bridge", id, ports...)
}

// runIn is run in a network other than the default.
func (s *containerdStory) runIn(t *testing.T, network, id string, ports ...portMapping) {
	t.Helper()
	dir := s.user.runtime + "/" + id
	h := cniHook{State: s.running.state, Dir: dir, Network: network, Ports: ports}
	if s.detach {
		h.NetNS = s.running.state + "/netns"
	}
	hooks, err := h.hooks()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("set -e\nmkdir -p %[1]s/log\necho 'nameserver 10.0.2.3' >%[1]s/resolv.conf\ncat >%[1]s/hooks.json\n"+
		"printf '#!/bin/sh\\nexec %[2]s @runc %[1]s/hooks.json %[3]s \"$@\"\\n' >%[1]s/runc\nchmod 755 %[1]s/runc", dir, probe(), tool(t, "runc"))
	cmd := s.user.command(t.Context(), "sh", "-c", script)
	cmd.Stdin = strings.NewReader(string(hooks))
	if o := finish(cmd); o.code != 0 {
		t.Fatal(o.err)
	}
	s.mustCtr(t, "run", "-d", "--snapshotter", "native", "--cgroup", "", "--runc-binary", dir+"/runc",
		"--mount", "type=bind,src="+dir+"/log,dst=/log,options=rbind:rw",
		"--mount", "type=bind,src="+dir+"/resolv.conf,dst=/etc/resolv.conf,options=rbind:ro", imageName, id)
}

// in runs a command in a container.
func (s *containerdStory) in(t *testing.T, id string, command ...string) string {
	t.Helper()
	return s.mustCtr(t, append([]string{"task", "exec", "--exec-id", fmt.Sprint("x", time.Now().UnixNano()), id}, command...)...)
}

// remove ends a container and removes it.
func (s *containerdStory) remove(t *testing.T, id string) {
	t.Helper()
	s.mustCtr(t, "task", "kill", "--signal", "SIGKILL", id)
	if err := eventually(patience, func() error {
		o := s.ctr(t, "task", "delete", id)
		return failIf(o.code != 0, "%s", o.err)
	}); err != nil {
		t.Error(err)
	}
	s.mustCtr(t, "container", "delete", id)
}

// seenBy returns the clients that nginx in a container has logged.
func (s *containerdStory) seenBy(id string) []string {
	b, _ := os.ReadFile(s.user.runtime + "/" + id + "/log/access")
	return strings.Fields(string(b))
}

// fetch fetches the page and returns whom nginx saw.
func (s *containerdStory) fetch(t *testing.T, id string, ns *netns, addr string) string {
	t.Helper()
	had := len(s.seenBy(id))
	fetchNginx(t, ns, addr)
	var seen []string
	if err := eventually(patience, func() error {
		seen = s.seenBy(id)
		return failIf(len(seen) != had+1, "nginx has logged %v", seen)
	}); err != nil {
		t.Fatal(err)
	}
	return seen[had]
}

// fetchNginx fetches the page, as soon as nginx listens.
func fetchNginx(t *testing.T, ns *netns, addr string) {
	t.Helper()
	var o outcome
	get := func() error {
		o = finish(exec.Command(tool(t, "curl"), "-sS", "--fail", "--max-time", "30", "http://"+addr+"/"))
		return failIf(o.code != 0, "%s", o.err)
	}
	err := eventually(patience, func() error {
		if ns == nil {
			return get()
		}
		return ns.do(get)
	})
	if err != nil || o.out != "hello from nginx\n" {
		t.Fatalf("curl http://%s/: exit code %d: %q %s", addr, o.code, o.out, o.err)
	}
}

func (s *containerdStory) tell(t *testing.T) {
	s.image = nginxImage(t, s.user)
	s.step(t, "starts", s.invocation(containerdFlags...)+" containerd", func(t *testing.T) string {
		took := s.begin(t)
		s.mustCtr(t, "image", "import", "--no-unpack", "--base-name", "docker.io/local/nginx", s.image)
		return took
	})
	if t.Failed() {
		return
	}
	s.step(t, "container behind the bridge", "ctr run (CNI as nerdctl)", func(t *testing.T) string {
		start := time.Now()
		s.run(t, "web", portMapping{"127.0.0.1", 8080, 80, "tcp"}, portMapping{host4, 8080, 80, "tcp"},
			portMapping{"0.0.0.0", 8080, 80, "udp"})
		return time.Since(start).Round(10 * time.Millisecond).String()
	})
	s.dualStack(t)
	if t.Failed() {
		return
	}
	s.step(t, "v4 out", "", func(t *testing.T) string {
		s.in(t, "web", "/bin/probe", "@many", "2", "20", remote4)
		s.in(t, "web", "/bin/probe", "@udpecho", remote4, "1200", "3")
		return ""
	})
	s.step(t, "DNS", "", func(t *testing.T) string {
		if got := s.in(t, "web", "/bin/wget", "-q", "-O", "-", url("web.e2e.test")); got != greeting+"\n" {
			t.Errorf("by name: %q", got)
		}
		return ""
	})
	s.inward(t)
	s.overIPv6(t)
	s.step(t, "inspect explains it", "postern inspect", s.inspect)
	s.step(t, "stop leaves nothing", "", func(t *testing.T) string {
		s.remove(t, "web")
		client{}.closed(t, "tcp", "127.0.0.1:8080")
		s.running.stop(t, unix.SIGTERM)
		return ""
	})
	s.step(t, "restart", "", func(t *testing.T) string {
		took := s.begin(t)
		s.run(t, "web", portMapping{"127.0.0.1", 8080, 80, "tcp"})
		s.fetch(t, "web", nil, "127.0.0.1:8080")
		s.remove(t, "web")
		s.running.stop(t, unix.SIGTERM)
		return took
	})
}

// inward tells who reaches the containers.
func (s *containerdStory) inward(t *testing.T) {
	s.step(t, "published TCP, loopback", "curl http://127.0.0.1:8080/", func(t *testing.T) string {
		return fmt.Sprintf("(nginx saw %s)", s.fetch(t, "web", nil, "127.0.0.1:8080"))
	})
	s.step(t, "published TCP, network", "curl http://"+host4+":8080/", func(t *testing.T) string {
		seen := s.fetch(t, "web", lab.remote, host4+":8080")
		if s.personality && seen != remote4 {
			t.Errorf("nginx saw %s for %s", seen, remote4)
		}
		return fmt.Sprintf("(nginx saw %s)", seen)
	})
	s.step(t, "published UDP", "", func(t *testing.T) string {
		_, end := awaitReady(t, s.running.beside(context.Background(), "ctr", "task", "exec", "--exec-id", "udp", "web", "/bin/probe", "@witness", "udp4,0.0.0.0:80"))
		defer end()
		remote := client{ns: lab.remote}.mustAsk(t, "udp", host4+":8080").seen.Addr().String()
		local := client{}.mustAsk(t, "udp", "127.0.0.1:8080").seen.Addr().String()
		if s.personality && remote != remote4 {
			t.Errorf("the server saw %s for %s", remote, remote4)
		}
		return fmt.Sprintf("(seen: remote %s, loopback %s)", remote, local)
	})
	s.step(t, "port added while running", "a second container", func(t *testing.T) string {
		s.run(t, "second", portMapping{"0.0.0.0", 8082, 80, "tcp"})
		seen := s.fetch(t, "second", lab.remote, host4+":8082")
		s.remove(t, "second")
		client{ns: lab.remote}.closed(t, "tcp", host4+":8082")
		return fmt.Sprintf("(nginx saw %s)", seen)
	})
}
