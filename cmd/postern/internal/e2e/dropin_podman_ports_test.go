package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// The port on the host that cases publish.
const podmanPort = "18080"

// portCases are about published ports, through Podman's own forwarder, which connects
// from inside the container's network, and through slirp4netns.
func (p *podman) portCases(t *testing.T) {
	const flags = "-d -p 18080:80/tcp -p 18080:80/udp IMAGE"
	p.try(t, "published TCP and UDP, rootlesskit", podmanRun(slirpNet, flags), func(t *testing.T) string {
		return p.published(t, slirpNet, "10.0.2.100", "10.0.2.100")
	})
	p.try(t, "published TCP and UDP, slirp4netns", podmanRun(slirpPorts, flags), func(t *testing.T) string {
		return p.published(t, slirpPorts, "10.0.2.2", remote4)
	})
	for _, network := range []string{slirpNet, slirpPorts} {
		p.try(t, "published on 127.0.0.1 only, "+network, podmanRun(network, "-d -p 127.0.0.1:18080:80 IMAGE"), func(t *testing.T) string {
			return p.publishedOnLoopback(t, network)
		})
	}
	// Podman's own forwarder takes three seconds to say so, and is not slirp4netns.
	p.try(t, "published port is taken, "+slirpPorts, podmanRun(slirpPorts, "-d -p 127.0.0.1:18080:80 IMAGE"), p.publishedTaken)
	p.try(t, "published on [::1], rootlesskit", podmanRun(slirpNet, "-d -p [::1]:18080:80 IMAGE"), func(t *testing.T) string {
		p.serve(t, "six", slirpNet, "--publish", "[::1]:"+podmanPort+":80")
		e := client{}.await(t, "tcp6", "[::1]:"+podmanPort)
		return "client seen: " + e.seen.Addr().String()
	})
	p.table.notApplicable(p.caller, "published port added while running", "Podman cannot change a container's ports; below, its slirp4netns is asked directly")
	p.try(t, "port added and removed by the API socket", podmanRun(slirpPorts, "-d -p 18080:80 IMAGE; echo … | nc -NU TMPDIR/ID.net"), p.hostForwards)
}

// published: a witness tells who asks it, from the host itself and from the remote.
func (p *podman) published(t *testing.T, network, wantNear, wantFar string) string {
	p.serve(t, "published", network, "--publish", podmanPort+":80/tcp", "--publish", podmanPort+":80/udp")
	var near, far netip.Addr
	for n, proto := range []string{"tcp4", "udp4"} {
		if proto == "udp4" && network == slirpPorts && !p.ours {
			// With --disable-host-loopback it takes the answers for datagrams to the
			// host's loopback interface and drops them.
			y := client{ns: lab.remote}.await(t, proto, host4+":"+podmanPort).seen.Addr()
			return fmt.Sprintf("✗ no UDP from the host (podman#4586); clients seen: TCP host %v, TCP remote %v, UDP remote %v", near, far, y)
		}
		x := client{}.await(t, proto, "127.0.0.1:"+podmanPort).seen.Addr()
		y := client{ns: lab.remote}.await(t, proto, host4+":"+podmanPort).seen.Addr()
		if x.String() != wantNear || y.String() != wantFar {
			t.Errorf("%s: the server sees %v for a client on the host and %v for one elsewhere, want %s and %s", proto, x, y, wantNear, wantFar)
		}
		if n > 0 && (x != near || y != far) {
			t.Errorf("TCP's clients are %v and %v, UDP's %v and %v", near, far, x, y)
		}
		near, far = x, y
	}
	return fmt.Sprintf("clients seen: host %v, remote %v", near, far)
}

func (p *podman) publishedOnLoopback(t *testing.T, network string) string {
	p.serve(t, "loopback", network, "--publish", "127.0.0.1:"+podmanPort+":80")
	client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
	conn, err := client{ns: lab.remote}.dial("tcp4", host4+":"+podmanPort)
	if err == nil {
		conn.Close()
		t.Error("the port is also open elsewhere")
	}
	return ""
}

// publishedTaken: a port that somebody has makes the start fail, and nothing is left.
func (p *podman) publishedTaken(t *testing.T) string {
	l, err := net.Listen("tcp4", "127.0.0.1:"+podmanPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := p.look(t)
	o := p.call(t, p.with(slirpPorts, "--rm", "--name", "taken", "--publish", "127.0.0.1:"+podmanPort+":80", podmanImage, "true")...)
	const refusal = "add_hostfwd: slirp_add_hostfwd failed"
	said := strings.Join(strings.Fields(o.err), " ")
	if o.code != 126 || !strings.Contains(said, refusal) {
		t.Errorf("exit code %d: %s, want 126 and %q", o.code, said, refusal)
	}
	p.remove(t, "taken")
	p.nothingNew(t, before, "a start that failed")
	t.Logf("exit code %d after %v: %s", o.code, o.took, said)
	return "“" + refusal + "”"
}

// hostForwards speaks to the socket that Podman made for its own use.
func (p *podman) hostForwards(t *testing.T) string {
	tool(t, "nc")
	p.serve(t, "forwards", slirpPorts, "--publish", podmanPort+":80")
	id := p.must(t, "inspect", "--format", "{{.Id}}", "forwards")
	socket := p.runtime + "/t/" + id + ".net"
	const more = "18081"
	added := p.hostForward(t, socket, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":`+more+`,"guest_addr":"10.0.2.100","guest_port":80}}`)
	var reply struct{ Return struct{ ID int } }
	if err := json.Unmarshal([]byte(added), &reply); err != nil || reply.Return.ID == 0 {
		t.Fatalf("add_hostfwd: %s, %v", added, err)
	}
	client{}.await(t, "tcp4", "127.0.0.1:"+more)
	if list := p.hostForward(t, socket, `{"execute":"list_hostfwd"}`); strings.Count(list, `"host_port"`) < 2 {
		t.Errorf("list_hostfwd: %s", list)
	}
	removed := p.hostForward(t, socket, fmt.Sprintf(`{"execute":"remove_hostfwd","arguments":{"id":%d}}`, reply.Return.ID))
	if strings.Contains(removed, "error") {
		t.Errorf("remove_hostfwd: %s", removed)
	}
	err := eventually(goneLimit, func() error {
		conn, err := client{}.dial("tcp4", "127.0.0.1:"+more)
		if err != nil {
			return nil
		}
		return fmt.Errorf("still open: %w", conn.Close())
	})
	if err != nil {
		t.Error(err)
	}
	client{}.mustAsk(t, "tcp4", "127.0.0.1:"+podmanPort)
	return ""
}

// hostForward sends one request, as the user, and returns the answer.
func (p *podman) hostForward(t testing.TB, socket, request string) string {
	t.Helper()
	return strings.TrimSpace(p.mustCommand(t, "sh", "-c", `echo "$1" | exec nc -w 20 -NU "$2"`, "sh", request, socket))
}
