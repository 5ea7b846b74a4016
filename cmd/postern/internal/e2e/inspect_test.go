package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// seen is what the test reads of postern inspect --json.
type seen struct {
	Networks []struct {
		ID         uint64   `json:"id"`
		User       uint64   `json:"user"`
		Names      []string `json:"names"`
		Interfaces []struct {
			Index  int    `json:"index"`
			Name   string `json:"name"`
			Kind   string `json:"kind"`
			Bridge string `json:"bridge"`
			Peer   *struct {
				Net   uint64 `json:"net"`
				Index int    `json:"index"`
				Name  string `json:"name"`
			} `json:"peer"`
			Engine *struct {
				Kind string `json:"kind"`
				PID  int    `json:"pid"`
			} `json:"engine"`
		} `json:"interfaces"`
		Ports []struct {
			Rule string `json:"rule"`
		} `json:"ports"`
	} `json:"networks"`
	Processes []struct {
		PID int `json:"pid"`
		NS  struct {
			User  uint64 `json:"user"`
			Net   uint64 `json:"net"`
			Mount uint64 `json:"mnt"`
			PID   uint64 `json:"pid"`
		} `json:"namespaces"`
	} `json:"processes"`
}

// nested is what runs inside: a bridge, and a server in a network of its own behind a
// veth pair. The server's process number goes to a file, then it stays.
const nested = `set -e
FILE=$1
ip link add br0 type bridge
ip addr add 10.4.0.1/24 dev br0
ip link set br0 up
unshare -n -m -- sh -c 'echo $$ >'$FILE'; ip link set lo up; until ip link set eth0 up 2>/dev/null; do sleep 0.05; done; ip addr add 10.4.0.9/24 dev eth0; exec redis-server --bind 10.4.0.9 --save ""' &
until test -s $FILE; do sleep 0.05; done
ip link add vetha type veth peer name eth0
ip link set eth0 netns $(cat $FILE)
ip link set vetha master br0
ip link set vetha up
touch $FILE.ready
cat`

// TestInspectRootlessContainerd is a rootless engine's arrangement, made by RootlessKit
// and by us: postern inspect, as the user, is compared with what root's tools say.
func TestInspectRootlessContainerd(t *testing.T) {
	if !lab.root || !lab.subids {
		missing(t, "RootlessKit needs subordinate ids, and the comparison needs root")
	}
	for _, name := range []string{"ip", "lsns", "unshare", "nsenter", "redis-server"} {
		tool(t, name)
	}
	t.Run("rootlesskit", func(t *testing.T) {
		a := ordinary(t)
		kit := tool(t, "rootlesskit")
		tool(t, "slirp4netns")
		state := a.runtime + "/kit"
		inspectStory(t, a, "slirp4netns", "RootlessKit "+state, a.command(context.Background(), kit, "--state-dir="+state, "--net=slirp4netns",
			"--disable-host-loopback", "--copy-up=/etc", "--copy-up=/run", "--port-driver=builtin", "-p", "127.0.0.1:18765:80/tcp"))
	})
	t.Run("postern", func(t *testing.T) {
		a := ordinary(t)
		inspectStory(t, a, "postern", "instance story", a.postern(context.Background(), "run", "--name", "story", "-p", "18765:80", "--"))
	})
}

// inspectStory runs the arrangement under a command that makes its network.
func inspectStory(t *testing.T, a account, engine, title string, cmd *exec.Cmd) {
	file := a.runtime + "/server"
	cmd.Args = append(cmd.Args, "sh", "-c", nested, "sh", file)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs := &lockedBuffer{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if b, err := os.ReadFile(file); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		_ = stdin.Close()
		<-ended
	})
	server := 0
	if err := eventually(patience, func() error {
		if _, err := os.Stat(file + ".ready"); err != nil {
			return err
		}
		b, err := os.ReadFile(file)
		if err == nil {
			server, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err
	}); err != nil {
		t.Fatalf("the arrangement is not there: %v\n%s", err, errs)
	}
	awaitCommand(t, server, "redis-server") // which is when its address is there
	var s seen
	var text string
	if err := eventually(patience, func() error {
		text = finish(a.postern(t.Context(), "inspect", "--json")).out
		s = seen{}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return err
		}
		return s.check(server, engine, title)
	}); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	compareLSNS(t, s)
	compareLinks(t, s)
	five := finish(a.postern(t.Context(), "inspect", strconv.Itoa(server)))
	if five.code != 0 || strings.Count(five.out, "\n") != 5 || !strings.Contains(five.out, "eth0 <-> vetha in net") ||
		!strings.Contains(five.out, "served by "+engine) || !strings.Contains(five.out, "18765") {
		t.Errorf("inspect %d: %+v", server, five)
	}
	tree := finish(a.postern(t.Context(), "inspect"))
	for _, want := range []string{"vetha veth, port of br0 <-> eth0 in net", "eth0 veth 10.4.0.9/24 <-> vetha in net", title, "redis-server"} {
		if tree.code != 0 || !strings.Contains(tree.out, want) {
			t.Errorf("the tree lacks %q:\n%s%s", want, tree.out, tree.err)
		}
	}
	t.Logf("\n%s%s", tree.out, five.out)
}

// check looks for both networks, both ends, the engine and the published port.
func (s *seen) check(server int, engine, title string) error {
	inner := uint64(0)
	for _, p := range s.Processes {
		if p.PID == server {
			inner = p.NS.Net
		}
	}
	found := map[string]bool{}
	for _, n := range s.Networks {
		for _, l := range n.Interfaces {
			switch {
			case l.Name == "vetha" && l.Peer != nil && l.Peer.Net == inner && l.Peer.Name == "eth0" && l.Bridge == "br0":
				found["vetha"] = strings.Join(n.Names, ",") == title
				found["port"] = len(n.Ports) > 0 && strings.Contains(n.Ports[0].Rule, "18765")
			case n.ID == inner && l.Name == "eth0" && l.Peer != nil && l.Peer.Name == "vetha":
				found["eth0"] = true
			case l.Name == "tap0" && l.Engine != nil && l.Engine.Kind == engine:
				found["tap0"] = true
			}
		}
	}
	for _, want := range []string{"vetha", "eth0", "tap0", "port"} {
		if !found[want] {
			return fmt.Errorf("%s is missing or not as it should be", want)
		}
	}
	return nil
}

// compareLSNS: every user and network namespace in which lsns, as root, sees processes
// of the user is there, with a process of it.
func compareLSNS(t *testing.T, s seen) {
	t.Helper()
	out, err := exec.Command("lsns", "--noheadings", "--raw", "--output", "NS,TYPE,PID,UID").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[1] != "net" && f[1] != "user" && f[1] != "mnt" && f[1] != "pid" {
			continue
		}
		if uid, err := strconv.Atoi(f[3]); err != nil || uid == 0 {
			continue // root's own, this test's among them
		}
		id, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		inhabited := false
		for _, p := range s.Processes {
			for _, ns := range map[string]uint64{"net": p.NS.Net, "user": p.NS.User, "mnt": p.NS.Mount, "pid": p.NS.PID} {
				inhabited = inhabited || ns == id
			}
		}
		if !inhabited {
			t.Errorf("lsns has %s, inspect has not", strings.TrimSpace(line))
		}
	}
}

// compareLinks: ip -d link, as root, says the same of both ends.
func compareLinks(t *testing.T, s seen) {
	t.Helper()
	for _, n := range s.Networks {
		pid := 0
		for _, p := range s.Processes {
			if p.NS.Net == n.ID {
				pid = p.PID
			}
		}
		if pid == 0 || len(n.Interfaces) == 0 {
			continue
		}
		out, err := exec.Command("nsenter", "--net=/proc/"+strconv.Itoa(pid)+"/ns/net", "ip", "-d", "-o", "link").Output()
		if err != nil {
			continue // it ended just now
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(lines) != len(n.Interfaces) {
			t.Errorf("net %d: ip sees %d interfaces, inspect %d", n.ID, len(lines), len(n.Interfaces))
			continue
		}
		for i, l := range n.Interfaces {
			want := fmt.Sprintf("%d: %s", l.Index, l.Name)
			if l.Kind == "veth" && l.Peer != nil && l.Peer.Net != n.ID {
				want += fmt.Sprintf("@if%d", l.Peer.Index)
			}
			if !strings.HasPrefix(lines[i], want) || l.Kind == "veth" && !strings.Contains(lines[i], " veth ") {
				t.Errorf("net %d: ip says %q, inspect %q", n.ID, lines[i], want)
			}
		}
	}
}
