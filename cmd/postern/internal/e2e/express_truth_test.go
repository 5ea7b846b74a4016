package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// truthLimit is how long a line of the table may take beyond what it waits for itself.
const truthLimit = 20 * time.Second

// truthPort is the first port of the table's servers for a column.
func truthPort(column int) int { return 7100 + 100*column }

// truthRole: FIRST-PORT — goes through the table, all lines at once for both families,
// and prints what the clients saw, by the line's name and family.
func truthRole(args []string) error {
	first, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	saw := map[string]string{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for n, line := range truths {
		for family := range 2 {
			all.Go(func() {
				to := net.JoinHostPort([2]string{remote4, remote6}[family], strconv.Itoa(first+n))
				if line.client == nil {
					to = net.JoinHostPort(line.dead[family], portClosed)
				}
				got := line.asClient(to)
				mu.Lock()
				defer mu.Unlock()
				saw[truthKey(line, family)] = got
			})
		}
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(saw)
}

func truthKey(line truth, family int) string { return line.name + " " + []string{"v4", "v6"}[family] }

// asClient connects and does the client's part.
func (line truth) asClient(to string) string {
	start := time.Now()
	d := net.Dialer{Timeout: truthLimit, KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if line.options != nil {
				line.options(int(fd))
			}
		})
	}}
	conn, err := d.DialContext(context.Background(), "tcp", to)
	if err != nil {
		return errorName(err) + tooLate(start)
	}
	c := conn.(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(idleTime() + truthLimit))
	if line.client == nil {
		c.Close()
		return "connected"
	}
	got := line.client(c)
	c.Close()
	return got + tooLate(start)
}

// tooLate marks what took longer than anything in the table may.
func tooLate(start time.Time) string {
	if took := time.Since(start); took > idleTime()+truthLimit/2 {
		return fmt.Sprintf(" after %v", took.Round(time.Second))
	}
	return ""
}

// truthServers are a column's servers. What they saw comes through the channels, by
// line and family.
type truthServers map[string]chan string

func serveTruths(t *testing.T, column int) truthServers {
	t.Helper()
	s := truthServers{}
	err := lab.remote.do(func() (err error) {
		for n, line := range truths {
			if line.server == nil {
				continue
			}
			for family, addr := range []string{remote4, remote6} {
				l, listenErr := net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(truthPort(column)+n)))
				if listenErr != nil {
					return errors.Join(err, listenErr)
				}
				t.Cleanup(func() { l.Close() })
				saw := make(chan string, 10)
				s[truthKey(line, family)] = saw
				go acceptAll(l, func(c *net.TCPConn) {
					_ = c.SetDeadline(time.Now().Add(idleTime() + truthLimit))
					_ = c.SetKeepAlive(false)
					got := line.server(c)
					c.Close()
					saw <- got
				})
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// truthRoutes makes what the table cannot reach, until the test ends. The remote says
// so by rules of a filter: for routes the kernel limits such messages to one a second.
// What is routed to where it came from would make it send redirects.
func truthRoutes(t *testing.T) {
	t.Helper()
	nft := func(lines ...string) (err error) {
		for _, line := range lines {
			out, runErr := exec.Command(tool(t, "nft"), strings.Fields(line)...).CombinedOutput()
			if runErr != nil {
				err = errors.Join(err, fmt.Errorf("nft %s: %w: %s", line, runErr, out))
			}
		}
		return err
	}
	err := errors.Join(ip("route add prohibit 192.0.2.128/25", "-6 route add prohibit 2001:db8:deaf::/48"), lab.remote.do(func() error {
		return errors.Join(
			ip("route add 192.0.2.0/25 dev lo", "-6 route add 2001:db8:dead::/48 dev lo", "-6 route add blackhole 2001:db8:b1ac::/48"),
			nft("add table inet truth", "add chain inet truth forward { type filter hook forward priority 0; }",
				"add rule inet truth forward ip daddr 192.0.2.0/26 reject with icmp host-unreachable",
				"add rule inet truth forward ip daddr 192.0.2.64/26 reject with icmp admin-prohibited",
				"add rule inet truth forward ip6 daddr 2001:db8:dead:0::/64 reject with icmpv6 no-route",
				"add rule inet truth forward ip6 daddr 2001:db8:dead:1::/64 reject with icmpv6 admin-prohibited"))
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(ip("route del prohibit 192.0.2.128/25", "-6 route del prohibit 2001:db8:deaf::/48"), lab.remote.do(func() error {
			return errors.Join(nft("delete table inet truth"),
				ip("route del 192.0.2.0/25 dev lo", "-6 route del 2001:db8:dead::/48 dev lo", "-6 route del blackhole 2001:db8:b1ac::/48"))
		}))
		if err != nil {
			t.Error(err)
		}
	})
}

// column is a column of the table: a way to the remote.
type column struct {
	name string
	run  func(args ...string) outcome
	saw  map[string]string
}

// TestTruth is the truth table: what a container's socket and its server see of every
// way in which a connection can fail, end and go on, on both paths, and what they would
// see without postern between them.
func TestTruth(t *testing.T) {
	truthRoutes(t)
	a := ordinary(t)
	columns := []*column{{name: "direct", run: func(args ...string) outcome { return finish(a.command(t.Context(), probe(), args...)) }}}
	for _, h := range []highway{
		{"run", "tap", 65520, "netstack"}, {"run", "tap", 65520, "express"}, {"attach", "packet", 1280, "express"}, {"run", "packet", 1500, "netstack"},
	} {
		needEndpoint(t, h.endpoint)
		i := h.begin(t, ordinary(t))
		columns = append(columns, &column{name: h.String(), run: func(args ...string) outcome { return i.exec(t, append([]string{probe()}, args...)...) }})
	}
	var all sync.WaitGroup
	for n, c := range columns {
		servers := serveTruths(t, n)
		all.Go(func() { c.fill(t, n, servers) })
	}
	all.Wait()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "client | server\t")
	for _, c := range columns {
		fmt.Fprint(w, c.name, "\t")
	}
	fmt.Fprintln(w)
	for _, line := range truths {
		for family := range 2 {
			line.judge(t, w, family, columns)
		}
	}
	_ = w.Flush()
	t.Logf("\n%s", table.String())
}

// fill has a column's client go through the table.
func (c *column) fill(t *testing.T, n int, servers truthServers) {
	o := c.run("@truth", strconv.Itoa(truthPort(n)))
	if err := json.Unmarshal([]byte(o.out), &c.saw); err != nil || o.code != 0 {
		t.Errorf("%s: exit code %d, %v\n%s\n%s", c.name, o.code, err, o.out, o.err)
		c.saw = map[string]string{}
	}
	for key, saw := range servers {
		select {
		case got := <-saw:
			c.saw[key] += "|" + got
		case <-time.After(idleTime() + truthLimit):
			c.saw[key] += "|nothing"
		}
	}
	for _, line := range truths {
		for family := range 2 {
			if key := truthKey(line, family); line.settle != nil {
				c.saw[key] = line.settle(c.saw[key])
			}
		}
	}
}

// judge writes a line and compares it.
func (line truth) judge(t *testing.T, w *tabwriter.Writer, family int, columns []*column) {
	key := truthKey(line, family)
	fmt.Fprintf(w, "%s\t", key)
	direct := columns[0].saw[key]
	note := ""
	for _, c := range columns {
		got := c.saw[key]
		text := got
		if c != columns[0] && got == direct {
			text = "="
		}
		fmt.Fprintf(w, "%s\t", strings.ReplaceAll(text, "|", " | "))
		if got == direct {
			continue
		}
		if why := line.explain(got, family); why != "" {
			note = why
			continue
		}
		t.Errorf("%s, %s: %q; directly: %q", key, c.name, got, direct)
	}
	fmt.Fprintln(w, note)
}

// explain returns why a difference is to be expected, "" if it is not.
func (line truth) explain(got string, family int) string {
	for why, want := range line.differs {
		if got == want[family] {
			return why
		}
	}
	return ""
}
