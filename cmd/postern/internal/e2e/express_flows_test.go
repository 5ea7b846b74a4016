package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestExpressRawFrames: SYNs that no socket of the namespace sent go the universal
// path, from the container's own address too.
func TestExpressRawFrames(t *testing.T) {
	overHighways(t, someKinds(), func(t *testing.T, h highway) {
		b := newBanners(t)
		i := h.begin(t, ordinary(t))
		i.expect(t, "@raw", "banner", control(b))
		own := control(b)
		for n := range own {
			src := "10.0.2.100"
			if own[n].Dst.Addr().Is6() {
				src = "fd00::100"
			}
			own[n].Src = addrPort(src, "0")
		}
		for _, a := range i.try(t, "@raw", own) {
			t.Log(a, a.Result) // the kernel resets what it did not ask for
		}
		s := i.express(t)
		if s.Flows.Express != 0 || s.EngineRestarts != 0 {
			t.Errorf("flows %+v, %d restarts", s.Flows, s.EngineRestarts)
		}
		t.Log(about(s.Counters, "express"))
		i.awaitExpress(t)
	})
}

// TestExpressOtherSource: connections from another address that the container gave
// itself work, on whatever path.
func TestExpressOtherSource(t *testing.T) {
	ipTool := tool(t, "ip")
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		i.mustExec(t, ipTool, "addr", "add", "10.0.2.101/24", "dev", "tap0")
		i.mustExec(t, ipTool, "addr", "add", "fd00::101/64", "dev", "tap0", "nodad")
		for _, c := range [][2]string{{remote4, "10.0.2.101"}, {remote6, "fd00::101"}} {
			held := i.stand(t, "@hold", "addr="+c[0], "src="+c[1], "n=5")
			t.Logf("from %s: %+v %s", c[1], i.express(t).Flows, held.first)
			i.awaitFlows(t, 5, 0)
			t.Log(held.end(t))
			i.mustExec(t, probe(), "@gaps", c[0], "20", "5", c[1])
		}
		i.awaitExpress(t)
	})
}

// TestExpressSocketOptions: sockets with uncommon options connect: TCP Fast Open,
// Multipath TCP, marks of their own, a port of their own choice.
func TestExpressSocketOptions(t *testing.T) {
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		for _, words := range [][]string{
			{"opt=tfo"}, {"opt=mptcp"}, {"mark=0x1"}, {"mark=0x4000"}, {"mark=0xff000000"}, {"port=5000"}, {"port=5010", "mark=0x80000"},
		} {
			for _, addr := range []string{remote4, remote6} {
				held := i.stand(t, append([]string{"@hold", "addr=" + addr, "n=3"}, words...)...)
				i.awaitFlows(t, 3, 3)
				t.Log(words, addr, held.first, held.end(t))
				i.awaitFlows(t, 0, 0)
			}
		}
	})
}

// tcpInitialRTO is when a SYN without an answer is sent again (RFC 6298 section 2.1,
// TCP_TIMEOUT_INIT).
const tcpInitialRTO = time.Second

// reuseRole: ADDRESS PORT COUNT HOW — so many connections in a row from one local port.
// HOW they end: "server" ends first, the client "resets", or it ends first and reuses
// the port "late", after its kernel allows that (net.ipv4.tcp_tw_reuse). Or it "aborts"
// before it has heard anything; then each connection has a port of its own.
func reuseRole(args []string) error {
	count, _ := strconv.Atoi(args[2])
	o, err := parseHold([]string{"addr=" + args[0], "to=" + args[1], "limit=10s"})
	if err != nil {
		return err
	}
	if args[3] == "late" {
		if err := sysctl("net/ipv4/tcp_tw_reuse", "1"); err != nil {
			return err
		}
	}
	var slowest time.Duration
	var dialErr error
	lostSYNs := 0
	for n := range count {
		if o.port = 4567 - n; args[3] == "aborts" { // dial adds n
			o.port = 0
		}
		var start time.Time
		var conn net.Conn
		err := eventually(patience, func() (err error) {
			// The last acknowledgement of the connection before may be under way.
			start = time.Now()
			if conn, err = o.dial(n); errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
			dialErr = err
			return nil
		})
		if err = errors.Join(err, dialErr); err != nil {
			return fmt.Errorf("connection %d: %w", n, err)
		}
		took := time.Since(start)
		if slowest = max(slowest, took); took > tcpInitialRTO {
			lostSYNs++
		}
		if lostSYNs > 5 { // one now and then may meet a busy machine
			return fmt.Errorf("connection %d: %d connects needed another SYN", n, lostSYNs)
		}
		c := conn.(*net.TCPConn)
		_ = c.SetDeadline(time.Now().Add(patience))
		said := fmt.Sprint("connection ", n)
		switch args[3] {
		case "server":
			var b []byte
			if b, err = io.ReadAll(c); err == nil && string(b) != "bye" {
				err = fmt.Errorf("%q", b)
			}
		case "resets":
			err = echoOnce(c, said, patience)
			_ = c.SetLinger(0)
		case "aborts":
			say(c, said)
			time.Sleep(time.Duration(n%5) * time.Millisecond)
			_ = c.SetLinger(0)
		default:
			err = echoOnce(c, said, patience)
			_ = c.CloseWrite()
			if rest, readErr := io.ReadAll(c); err == nil && (readErr != nil || len(rest) != 0) {
				err = fmt.Errorf("%q, %w", rest, readErr)
			}
		}
		if err != nil {
			return fmt.Errorf("connection %d: %w", n, err)
		}
		c.Close()
		if args[3] == "late" && n < count-1 {
			time.Sleep(1100 * time.Millisecond)
		}
	}
	fmt.Printf("%d connections from one port, slowest connect %v", count, slowest.Round(time.Microsecond))
	return nil
}

// TestExpressPortReuse: a client may connect from the same port to the same server
// again, as soon as its own kernel lets it.
func TestExpressPortReuse(t *testing.T) {
	port := byeServer(t)
	overHighwaysAtOnce(t, append(someKinds(), highway{"run", "tap", 65520, "netstack"}), func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		bothFamilies(t, func(t *testing.T, addr string) {
			t.Log("server ends: ", i.mustExec(t, probe(), "@reuse", addr, port, "100", "server"))
			if h.tcp == "netstack" {
				return // a reset and a SYN right behind it find the same endpoint there
			}
			t.Log("client resets: ", i.mustExec(t, probe(), "@reuse", addr, portEcho, "100", "resets"))
			t.Log("client ends: ", i.mustExec(t, probe(), "@reuse", addr, portEcho, "2", "late"))
		})
		i.awaitFlows(t, 0, 0)
	})
}

// TestExpressAborts: a client's reset reaches the server as a reset, always.
func TestExpressAborts(t *testing.T) {
	const count = 200
	overHighways(t, append(expressKinds, highway{"run", "tap", 65520, "netstack"}), func(t *testing.T, h highway) {
		_, swallow, ends := endlessServers(t)
		i := h.begin(t, ordinary(t))
		bothFamilies(t, func(t *testing.T, addr string) {
			i.mustExec(t, probe(), "@reuse", addr, swallow, strconv.Itoa(count), "aborts")
			saw := map[string]int{}
			for range count {
				select {
				case end := <-ends:
					saw[end]++
				case <-time.After(patience):
					saw["nothing"]++
				}
				if saw["nothing"] > 0 {
					break
				}
			}
			t.Log(saw)
			if saw["swallow: ECONNRESET"] != count {
				t.Errorf("the server saw %v, want %d resets", saw, count)
			}
		})
	})
}

// byeServer says "bye" and ends first.
func byeServer(t *testing.T) (port string) {
	t.Helper()
	err := lab.remote.do(func() error {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		port = strconv.Itoa(int(l.Addr().(*net.TCPAddr).AddrPort().Port()))
		go acceptAll(l, func(c *net.TCPConn) {
			say(c, "bye")
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// gapsRole: ADDRESS TRIES MILLISECONDS [SOURCE] — connects and exchanges a word again
// and again, and prints how long the longest time without a success was.
func gapsRole(args []string) error {
	tries, _ := strconv.Atoi(args[1])
	pause, _ := strconv.Atoi(args[2])
	o := holdOptions{addr: args[0], to: portEcho, n: 1, limit: patience}
	if len(args) > 3 {
		o.src = netip.MustParseAddr(args[3]).String()
	}
	var gap time.Duration
	failed := 0
	last := time.Now()
	for n := range tries {
		c, err := o.dial(n)
		if err == nil {
			err = echoOnce(c, fmt.Sprint("gap ", n), patience)
			c.Close()
		}
		if err == nil {
			gap = max(gap, time.Since(last)-time.Duration(pause)*time.Millisecond)
			last = time.Now()
		} else {
			failed++
		}
		time.Sleep(time.Duration(pause) * time.Millisecond)
	}
	if time.Since(last) > patience/2 {
		return fmt.Errorf("nothing worked for the last %v", time.Since(last))
	}
	fmt.Printf("%d tries, %d failed, longest gap %v", tries, failed, gap.Round(time.Millisecond))
	return nil
}
