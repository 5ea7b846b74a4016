package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// midwayRole: ADDRESS ENDLESS SWALLOW — has one connection that receives without end,
// one that sends without end and an idle one; prints how each of them ends.
func midwayRole(args []string) error {
	dial := func(port string) (net.Conn, error) {
		return net.DialTimeout("tcp", net.JoinHostPort(args[0], port), patience)
	}
	receives, err1 := dial(args[1])
	sends, err2 := dial(args[2])
	idle, err3 := dial(portEcho)
	if err1 != nil || err2 != nil || err3 != nil {
		return fmt.Errorf("%w, %w, %w", err1, err2, err3)
	}
	for _, c := range []net.Conn{receives, sends, idle} {
		_ = c.SetDeadline(time.Now().Add(within / 2))
	}
	if err := echoOnce(idle, "idle", patience); err != nil {
		return err
	}
	_ = idle.SetDeadline(time.Now().Add(within / 2))
	fmt.Println("ready")
	ends := map[string]string{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for name, wait := range map[string]func() error{
		"receives": func() error { _, err := io.Copy(io.Discard, receives); return orEOF(err) },
		"idle":     func() error { _, err := io.Copy(io.Discard, idle); return orEOF(err) },
		"sends": func() error {
			b := make([]byte, 64<<10)
			for {
				if _, err := sends.Write(b); err != nil {
					return err
				}
			}
		},
	} {
		all.Go(func() {
			end := outcomeOf(wait())
			mu.Lock()
			defer mu.Unlock()
			ends[name] = end
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(ends)
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// endlessServers sends on one port and swallows on another until that fails, and say how
// it did.
func endlessServers(t *testing.T) (endless, swallow string, ends chan string) {
	t.Helper()
	ends = make(chan string, 1000)
	err := lab.remote.do(func() error {
		for _, s := range []struct {
			port   *string
			handle func(c *net.TCPConn)
		}{
			{&endless, func(c *net.TCPConn) {
				b := make([]byte, 64<<10)
				for {
					if _, err := c.Write(b); err != nil {
						ends <- "endless: " + outcomeOf(err)
						return
					}
				}
			}},
			{&swallow, func(c *net.TCPConn) {
				_, err := io.Copy(struct{ io.Writer }{io.Discard}, c)
				ends <- "swallow: " + outcomeOf(orEOF(err))
			}},
		} {
			l, err := net.Listen("tcp", ":0")
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			*s.port = strconv.Itoa(int(l.Addr().(*net.TCPAddr).AddrPort().Port()))
			go acceptAll(l, s.handle)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return endless, swallow, ends
}

// TestExpressEngineKilled: kill -9 of the engine resets the express flows at both of
// their ends, never ends them in good order, and new ones work at once.
func TestExpressEngineKilled(t *testing.T) {
	endless, swallow, ends := endlessServers(t)
	overHighways(t, []highway{{"run", "tap", 65520, "express"}, {"attach", "packet", 1280, "express"}}, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		i.mayTalk = true
		gaps := i.stand(t, "@listener", "gaps", remote4) // prints its gap at the end of its input
		for n, addr := range []string{remote4, remote6} {
			midway := i.stand(t, "@midway", addr, endless, swallow)
			err := eventually(patience, func() error {
				s := i.express(t)
				return failIf(s.Flows.Express < 3, "%+v", s.Flows)
			})
			if err != nil {
				t.Error(err)
			}
			kill(t, i.express(t).EnginePID)
			start := time.Now()
			i.awaitExpress(t)
			t.Logf("new connections go express %v after the engine's end (promised: %v)", time.Since(start).Round(time.Millisecond), serveWithin)
			saw := map[string]string{}
			if err := json.Unmarshal([]byte(midway.finish(t)), &saw); err != nil {
				t.Fatal(err)
			}
			if saw["receives"] != "ECONNRESET" || saw["idle"] != "ECONNRESET" || saw["sends"] != "ECONNRESET" && saw["sends"] != "EPIPE" {
				t.Errorf("the container's ends saw %v, want resets", saw)
			}
			for range 2 {
				select {
				case end := <-ends:
					if !strings.HasSuffix(end, "ECONNRESET") && end != "endless: EPIPE" {
						t.Errorf("the server saw %s, want a reset", end)
					}
				case <-time.After(patience):
					t.Error("a server has not noticed")
				}
			}
			if s := i.express(t); s.EngineRestarts != n+1 {
				t.Errorf("%d restarts, want %d", s.EngineRestarts, n+1)
			}
		}
		t.Log(gaps.end(t))
	})
}

// listenerRole: what takes a moment to say.
//
//	gaps ADDRESS   connects and exchanges a word without end, until its input ends
//	find           prints the ports on which 127.0.0.1 and ::1 listen
//	flood PORT N   so many connections to 127.0.0.1 and ::1
//	bind PORT      binds what listens there
func listenerRole(args []string) error {
	switch args[0] {
	case "gaps":
		return gapsUntilEnd(args[1])
	case "find":
		for _, name := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/self/net/" + name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) > 3 && f[3] == "0A" { // TCP_LISTEN
					_, hex, _ := strings.Cut(f[1], ":")
					port, _ := strconv.ParseUint(hex, 16, 16)
					fmt.Println(name, port)
				}
			}
		}
		return nil
	case "flood":
		return floodListener(args[1], args[2])
	}
	for _, at := range []string{"127.0.0.1", "::1", "0.0.0.0", "::", "10.0.2.100", "fd00::100"} {
		l, err := net.Listen("tcp", net.JoinHostPort(at, args[1]))
		fmt.Print(at, " ", errorName(err), "; ")
		if err == nil {
			l.Close()
		}
	}
	return nil
}

func gapsUntilEnd(addr string) error {
	fmt.Println("ready")
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	var gap time.Duration
	tries, failed := 0, 0
	for last := time.Now(); ; tries++ {
		select {
		case <-end:
			fmt.Printf("%d connections one after the other, %d failed; longest time without a success %v", tries, failed, gap.Round(time.Millisecond))
			return nil
		default:
		}
		o := holdOptions{addr: addr, to: portEcho, limit: patience}
		c, err := o.dial(0)
		if err == nil {
			err = echoOnce(c, "gap", patience)
			c.Close()
		}
		if err != nil {
			failed++
			time.Sleep(5 * time.Millisecond)
			continue
		}
		gap, last = max(gap, time.Since(last)), time.Now()
		time.Sleep(5 * time.Millisecond)
	}
}

// floodListener connects to the engine's own listeners.
func floodListener(port, count string) error {
	n, _ := strconv.Atoi(count)
	saw := map[string]int{}
	for k := range n {
		at := []string{"127.0.0.1", "::1"}[k%2]
		c, err := net.DialTimeout("tcp", net.JoinHostPort(at, port), patience)
		if err != nil {
			saw["connect "+errorName(err)]++
			continue
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err = io.WriteString(c, "let me out"); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		saw["then "+outcomeOf(err)]++
		c.Close()
	}
	fmt.Print(saw)
	return nil
}

// snapshotRole prints all that express and others may set in a network namespace.
func snapshotRole([]string) error {
	values := map[string]string{}
	err := filepath.WalkDir("/proc/sys/net", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil {
			values[path] = strings.TrimSpace(string(b))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		// What the kernel counts by itself.
		if !strings.HasSuffix(name, "nf_conntrack_count") && !strings.Contains(name, "/neigh/") {
			fmt.Println(name, values[name])
		}
	}
	return nil
}

// TestExpressLeavesNothing: a namespace that was attached to is afterwards as before.
func TestExpressLeavesNothing(t *testing.T) {
	nft, ipTool := tool(t, "nft"), tool(t, "ip")
	for _, endpoint := range []string{"tap", "packet"} {
		t.Run(endpoint, func(t *testing.T) {
			needEndpoint(t, endpoint)
			f := newForeign(t, ordinary(t))
			look := func() string {
				var all []string
				for _, c := range [][]string{
					{nft, "list", "ruleset"}, {ipTool, "rule"}, {ipTool, "-6", "rule"}, {ipTool, "route", "show", "table", "all"},
					{ipTool, "-6", "route", "show", "table", "all"}, {ipTool, "-br", "link"}, {ipTool, "addr"}, {probe(), "@snapshot"},
				} {
					all = append(all, strings.Join(c, " "), f.mustExec(t, c...))
				}
				return strings.Join(all, "\n")
			}
			// The TAP may not bring the loopback up for the first time.
			f.mustExec(t, ipTool, "link", "set", "lo", "up")
			f.mustExec(t, nft, "add", "table", "inet", "foreign")
			before := look()
			i := f.attach(t, "--endpoint", endpoint, "--tcp", "express", f.pid())
			i.awaitExpress(t)
			if during := look(); during == before {
				t.Error("nothing changes: this test sees nothing")
			} else {
				t.Log(f.mustExec(t, nft, "list", "ruleset"), f.mustExec(t, ipTool, "rule"), f.mustExec(t, ipTool, "-6", "rule"), changes(before, during))
			}
			_ = i.cmd.Process.Signal(os.Interrupt)
			if err := i.wait(t); err != nil {
				t.Logf("postern attach: %v", err)
			}
			err := eventually(patience, func() error {
				after := look()
				return failIf(after != before, "%s", changes(before, after))
			})
			if err != nil {
				t.Errorf("afterwards:\n%v", err)
			}
		})
	}
}

// changes lists the lines of one text that the other has not.
func changes(before, after string) string {
	var all []string
	for _, d := range []struct{ mark, text, other string }{{"- ", before, after}, {"+ ", after, before}} {
		for line := range strings.Lines(d.text) {
			if !strings.Contains(d.other, line) {
				all = append(all, d.mark+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(all, "\n")
}
