package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// control is a client of the instance's control socket.
func (i *inst) control() *controlClient { return controlAt(i.dir() + "/api.sock") }

// controlAt is a client of the control socket at a path, ours or RootlessKit's. Each
// call has a connection of its own: a socket serves a few at a time, and one that
// idles until the test ends would be in the way of others.
func controlAt(socket string) *controlClient {
	return &controlClient{http.Client{Timeout: within, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

type controlClient struct{ http.Client }

// call sends a request, with a body unless that is nil, and returns the status and the
// body of the answer.
func (c *controlClient) call(method, path string, body any) (status int, answer []byte, err error) {
	var b []byte
	if body != nil {
		if b, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	request, err := http.NewRequest(method, "http://postern"+path, bytes.NewReader(b))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// rule is the part of a rule that tests look at, in our part of the API.
type rule struct {
	ID    int              `json:"id"`
	Spec  string           `json:"spec"`
	Auto  bool             `json:"auto"`
	Bound []netip.AddrPort `json:"bound"`
}

// add publishes ports, all or none.
func (c *controlClient) add(specs ...string) (rules []rule, err error) {
	status, answer, err := c.call("POST", "/v1/postern/ports", map[string]any{"specs": specs})
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("status %d: %s", status, answer)
	}
	if err == nil {
		err = json.Unmarshal(answer, &rules)
	}
	return rules, err
}

func (c *controlClient) remove(id int) error {
	status, answer, err := c.call("DELETE", fmt.Sprint("/v1/postern/ports/", id), nil)
	return failIf(err != nil || status/100 != 2, "remove %d: status %d: %s, %w", id, status, answer, err)
}

func (c *controlClient) rules() (rules []rule, err error) {
	status, answer, err := c.call("GET", "/v1/postern/ports", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, answer)
	}
	if err == nil {
		err = json.Unmarshal(answer, &rules)
	}
	return rules, err
}

// TestPublishedRootlessctl: the real rootlessctl changes a live instance.
func TestPublishedRootlessctl(t *testing.T) {
	ctl := tool(t, "rootlessctl")
	overKinds(t, func(t *testing.T, endpoint string) {
		i := ordinary(t).start(t, "ctl", "--endpoint", endpoint)
		i.witness(t, "tcp4,0.0.0.0:80", "tcp6,[::]:80", "udp4,0.0.0.0:53", "tcp4,127.0.0.1:81")
		run := func(ok bool, args ...string) string {
			t.Helper()
			o := finish(i.command(t.Context(), ctl, append([]string{"--socket", i.dir() + "/api.sock"}, args...)...))
			if (o.code == 0) != ok {
				t.Fatalf("rootlessctl %v: exit code %d\n%s%s", args, o.code, o.out, o.err)
			}
			return o.out + o.err
		}
		if out := run(true, "add-ports", "0.0.0.0:8001:80/tcp", "127.0.0.1:8002:53/udp", "127.0.0.1:8003:127.0.0.1:81/tcp"); out != "1\n2\n3\n" {
			t.Errorf("add-ports: %q", out)
		}
		for _, q := range []struct{ network, to, want string }{
			{"tcp", host4 + ":8001", remote4}, {"tcp", "127.0.0.1:8001", gateways[0]}, {"udp", "127.0.0.1:8002", gateways[0]}, {"tcp", "127.0.0.1:8003", "127.0.0.1"},
		} {
			c := client{}
			if q.want == remote4 {
				c.ns = lab.remote
			}
			if a := c.mustAsk(t, q.network, q.to); a.seen.Addr().String() != q.want {
				t.Errorf("%s %s: the server saw %v, want %s", q.network, q.to, a.seen, q.want)
			}
		}
		list := run(true, "list-ports")
		if !regexp.MustCompile(`(?m)^1 +tcp +0\.0\.0\.0 +8001 +80 *$`).MatchString(list) || strings.Count(list, "\n") != 4 {
			t.Errorf("list-ports:\n%s", list)
		}
		if out := run(true, "list-ports", "--json"); !strings.Contains(out, `{"id":2,"spec":{"proto":"udp","parentIP":"127.0.0.1","parentPort":8002,"childPort":53}}`) {
			t.Errorf("list-ports --json: %s", out)
		}
		if out := run(true, "info", "--json"); !strings.Contains(out, `"driver": "splice"`) || !strings.Contains(out, `"childIP": "10.0.2.100"`) {
			t.Errorf("info --json: %s", out)
		}
		if out := run(false, "add-ports", "127.0.0.1:8001:82/tcp"); !strings.Contains(out, "rule 1 (0.0.0.0:8001:80/tcp)") {
			t.Errorf("a conflict: %s", out)
		}
		run(true, "remove-ports", "1")
		if conn, err := (client{}).dial("tcp", "127.0.0.1:8001"); err == nil {
			conn.Close()
			t.Error("port 8001 is open after remove-ports")
		}
		run(false, "remove-ports", "1")
		client{}.mustAsk(t, "tcp", "127.0.0.1:8003")
	})
}

// TestPublishedCommand: postern ports, and the free port that run reports.
func TestPublishedCommand(t *testing.T) {
	a := ordinary(t)
	i := a.start(t, "cmd", "-p", "80")
	i.mayTalk = true
	i.witness(t, "tcp4,0.0.0.0:80", "tcp6,[::]:80", "udp4,0.0.0.0:53")
	told := regexp.MustCompile(`(?m)^postern: published 127\.0\.0\.1:([0-9]+), \[::1\]:([0-9]+) -> 80/tcp$`).FindStringSubmatch(i.stderr.String())
	if told == nil || told[1] != told[2] {
		t.Fatalf("the free port is not reported: %q", i.stderr)
	}
	client{}.mustAsk(t, "tcp", "127.0.0.1:"+told[1])
	client{}.mustAsk(t, "tcp", "[::1]:"+told[1])
	run := func(code int, args ...string) string {
		t.Helper()
		o := finish(a.postern(t.Context(), append([]string{"ports"}, args...)...))
		if o.code != code {
			t.Fatalf("postern ports %v: exit code %d, want %d\n%s%s", args, o.code, code, o.out, o.err)
		}
		return o.out + o.err
	}
	added := regexp.MustCompile(`^2  0\.0\.0\.0:8001 -> 80/tcp\n3  127\.0\.0\.1:([0-9]+) -> 53/udp\n$`).FindStringSubmatch(run(0, "add", "0.0.0.0:8001:80", "127.0.0.1::53/udp"))
	if added == nil {
		t.Fatal("postern ports add prints something else than two rules")
	}
	client{ns: lab.remote}.mustAsk(t, "tcp", host4+":8001")
	client{}.mustAsk(t, "udp", "127.0.0.1:"+added[1])
	t.Logf("postern ports list:\n%s", run(0, "list"))
	var rules []rule
	if err := json.Unmarshal([]byte(run(0, "list", "--json")), &rules); err != nil || len(rules) != 3 || strconv.Itoa(int(rules[2].Bound[0].Port())) != added[1] {
		t.Errorf("postern ports list --json: %+v, %v", rules, err)
	}
	// A conflict of meaning names the rule; one port of several adds none.
	if out := run(125, "add", "8010:80", "127.0.0.1:8001:80"); !strings.Contains(out, "rule 2 (0.0.0.0:8001:80/tcp)") || strings.Count(out, "\n") != 1 {
		t.Errorf("a conflict: %s", out)
	}
	if out := run(125, "add", "7999-8005:80-86"); !strings.Contains(out, "rule 2 ") {
		t.Errorf("a range with a port that is taken: %s", out)
	}
	if got := run(0, "remove", "2", "3"); got != "2\n3\n" {
		t.Errorf("postern ports remove: %q", got)
	}
	for _, port := range []string{"7999", "8001", "8010"} {
		if conn, err := (client{}).dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			t.Errorf("port %s is open", port)
		}
	}
	run(125, "remove", "2")
}

// TestPublishedPortRange: the container hands out the ports that the host hands out, unless it has others: then
// its sockets can have the ports of clients and be used again.
func TestPublishedPortRange(t *testing.T) {
	a := ordinary(t)
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	old, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("30000 50000"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(file, old, 0) })
	for _, c := range []struct {
		flags []string
		want  string
	}{{nil, "32768\t60999\n"}, {[]string{"-p", "8004:80"}, "30000\t50000\n"}} {
		if o := a.run(t, c.flags, "cat", file); o.out != c.want {
			t.Errorf("%v: %q, %q; want %q", c.flags, o.out, o.err, c.want)
		}
	}
}

// TestPublishedConflicts: who cannot have a port is told who has it, and what to do.
func TestPublishedConflicts(t *testing.T) {
	a := ordinary(t)
	pid, _ := a.hostWitness(t, "tcp4,127.0.0.1:8001", "udp4,127.0.0.1:8001")
	code := 125
	refused := func(want string, flags ...string) {
		t.Helper()
		o := a.run(t, flags, "true")
		if o.code != code || !strings.Contains(o.err, want) || strings.Count(o.err, "\n") != 1 {
			t.Errorf("postern run %v: exit code %d: %s\nwant %d and one line with %q", flags, o.code, o.err, code, want)
		}
		t.Log(strings.TrimSpace(o.err))
	}
	refused(fmt.Sprintf("held by probe (pid %d)", pid), "-p", "8001:80")
	refused(fmt.Sprintf("held by probe (pid %d)", pid), "-p", "8001:80/udp")
	refused("rule 1 (0.0.0.0:8002:80/tcp)", "-p", "0.0.0.0:8002:80", "-p", "127.0.0.1:8002:81")
	refused("rule 1 (8002:80/tcp)", "-p", "8002:80", "-p", "8002:81/tcp4")
	refused("203.0.113.7 is no address of this host", "-p", "203.0.113.7:8002:80")
	if lab.root {
		refused("net.ipv4.ip_unprivileged_port_start is 1024", "-p", "80:80")
	}
	if lab.root {
		// A process of somebody else is not ours to see.
		l, err := net.Listen("tcp", "127.0.0.1:8003")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refused("held by", "-p", "8003:80")
	}
	code = 2
	refused("--port-driver=none", "--port-driver", "none", "-p", "8002:80")
	// The same text may stand twice where there is room: tcp beside udp, v4 beside v6.
	a.mustRun(t, []string{"-p", "8002:80", "-p", "8002:80/udp", "-p", "[" + host6 + "]:8002:80", "-p", host4 + ":8002:80"}, "true")
}

// TestPublishedThousand: a thousand ports, by RootlessKit's API one by one and by
// ours together.
func TestPublishedThousand(t *testing.T) {
	const ports, promise = 1000, 2 * time.Second
	for _, driver := range []string{"splice", "netstack"} {
		t.Run(driver, func(t *testing.T) {
			i := ordinary(t).start(t, "many", "--port-driver", driver)
			i.witness(t, "tcp4,0.0.0.0:80", "tcp6,[::]:80")
			c := i.control()
			start := time.Now()
			for n := range ports {
				status, answer, err := c.call("POST", "/v1/ports", map[string]any{"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": 9000 + n, "childPort": 80})
				if err != nil || status != http.StatusCreated {
					t.Fatalf("port %d: status %d: %s, %v", n, status, answer, err)
				}
			}
			t.Logf("%d ports one by one: %v (promised: %v)", ports, time.Since(start).Round(time.Millisecond), promise)
			var specs []string
			for n := range ports {
				specs = append(specs, fmt.Sprintf("127.0.0.1:%d:80", 11000+n))
			}
			start = time.Now()
			if _, err := c.add(specs...); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d ports at once: %v", ports, time.Since(start).Round(time.Millisecond))
			start = time.Now()
			if _, err := c.add("127.0.0.2:9000-9999:80-1079"); err != nil {
				t.Fatal(err)
			}
			t.Logf("a range of %d ports: %v", ports, time.Since(start).Round(time.Millisecond))
			for _, at := range []string{"127.0.0.1:9000", "127.0.0.1:9999", "127.0.0.1:11000", "127.0.0.1:11999", "127.0.0.2:9000"} {
				client{}.mustAsk(t, "tcp", at)
			}
			rules, err := c.rules()
			if err != nil || len(rules) != 2*ports+1 {
				t.Fatalf("%d rules, %v", len(rules), err)
			}
			start = time.Now()
			for _, r := range rules {
				if err := c.remove(r.ID); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d rules removed one by one: %v", len(rules), time.Since(start).Round(time.Millisecond))
		})
	}
}

// TestPublishedOneWinner: of a hundred that add the same port at once, one wins.
func TestPublishedOneWinner(t *testing.T) {
	const rivals = 100
	i := ordinary(t).start(t, "one")
	i.witness(t, "tcp4,0.0.0.0:80")
	for _, spec := range []string{"8001:80", "0.0.0.0:8002:80", "unix:" + i.runtime + "/one.sock:80"} {
		results, start := map[string]int{}, time.Now()
		var mu sync.Mutex
		var all sync.WaitGroup
		for range rivals {
			all.Go(func() {
				c := i.control()
				status, answer, err := c.call("POST", "/v1/postern/ports", map[string]any{"spec": spec})
				key := fmt.Sprint(status)
				if err != nil || status != http.StatusCreated && status != http.StatusConflict {
					key = fmt.Sprintf("%d %s %v", status, answer, err)
				}
				mu.Lock()
				defer mu.Unlock()
				results[key]++
			})
		}
		all.Wait()
		t.Logf("%s: %v within %v", spec, results, time.Since(start).Round(time.Millisecond))
		if results["201"] != 1 || results["409"] != rivals-1 {
			t.Errorf("%s: %v, want one 201 and %d times 409", spec, results, rivals-1)
		}
	}
	client{}.mustAsk(t, "tcp", "127.0.0.1:8001")
}
