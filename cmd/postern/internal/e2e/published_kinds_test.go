package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPublishedUnix: unix sockets on either side and on both.
func TestPublishedUnix(t *testing.T) {
	overSettings(t, []setting{{"run", "tap", "splice"}, {"run", "packet", "splice"}, {"detached", "packet", "splice"}}, func(t *testing.T, s setting) {
		a := ordinary(t)
		path := func(name string) string { return a.runtime + "/" + name }
		i := s.begin(t, a, "unix:"+path("in.sock")+":80", "0.0.0.0:8001:unix:"+path("c.sock"), "unix:"+path("both.sock")+":unix:"+path("c.sock"))
		end := i.witness(t, "tcp4,0.0.0.0:80", "unix,"+path("c.sock"))
		if got := (client{}).mustAsk(t, "unix", path("in.sock")); got.seen.Addr().String() != gateways[0] {
			t.Errorf("a client of a unix socket: the server saw %v, want the gateway", got.seen)
		}
		client{ns: lab.remote}.mustAsk(t, "tcp", host4+":8001")
		client{}.mustAsk(t, "unix", path("both.sock"))
		info, err := os.Stat(path("in.sock"))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("the socket's file: %v, %v, want nobody else's", info, err)
		}
		end()
		_ = i.stdin.Close()
		_ = i.wait(t)
		for _, name := range []string{"in.sock", "both.sock"} {
			if _, err := os.Lstat(path(name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", name, err)
			}
		}
	})
}

// TestPublishedUnixNetstack: without sockets of the container's own, unix sockets in
// the container are served all the same; one on the host for a port is refused.
func TestPublishedUnixNetstack(t *testing.T) {
	a := ordinary(t)
	path := a.runtime + "/c.sock"
	i := a.start(t, "pub", "--port-driver", "netstack", "-p", "0.0.0.0:8001:unix:"+path, "-p", "unix:"+a.runtime+"/both.sock:unix:"+path)
	i.witness(t, "unix,"+path)
	client{ns: lab.remote}.mustAsk(t, "tcp", host4+":8001")
	client{}.mustAsk(t, "unix", a.runtime+"/both.sock")
	o := a.run(t, []string{"--port-driver", "netstack", "-p", "unix:" + a.runtime + "/in.sock:80"}, "true")
	if o.code != 125 || strings.Count(o.err, "\n") != 1 || !strings.Contains(o.err, "port 80") || !strings.Contains(o.err, "splice") {
		t.Errorf("exit code %d: %s, want 125 and a line with the port and the driver that serves it", o.code, o.err)
	}
	t.Log(strings.TrimSpace(o.err))
	if _, err := os.Lstat(a.runtime + "/in.sock"); err == nil {
		t.Error("the socket of the rule that was refused is left")
	}
}

// TestPublishedReverse: the container's clients reach a unix socket of the host.
func TestPublishedReverse(t *testing.T) {
	for _, s := range []setting{{"run", "tap", "splice"}, {"attach", "packet", "splice"}, {"detached", "packet", "splice"}, {"run", "tap", "netstack"}} {
		t.Run(s.String(), func(t *testing.T) {
			a := ordinary(t)
			path := func(name string) string { return a.runtime + "/" + name }
			a.hostWitness(t, "unix,"+path("db.sock"))
			i := s.begin(t, a, "reverse:unix:"+path("db.sock")+":5432", "reverse:unix:"+path("db.sock")+":10.0.2.100:80",
				"reverse:unix:"+path("db.sock")+":unix:"+path("c.sock"))
			asks := [][]string{{"tcp", "127.0.0.1:5432"}, {"tcp", "[::1]:5432"}, {"tcp", "10.0.2.100:80"}, {"unix", path("c.sock")}}
			for _, ask := range asks {
				i.mustExec(t, append([]string{probe(), "@ask"}, ask...)...)
			}
			// Another engine serves the same listeners.
			i.mayTalk = true
			kill(t, i.mustStatus(t).EnginePID)
			start := time.Now()
			for _, ask := range asks {
				i.mustExec(t, append([]string{probe(), "@ask"}, ask...)...)
			}
			t.Logf("all answer %v after kill -9 of the engine", time.Since(start).Round(time.Millisecond))
			if conn, err := (client{}).dial("tcp", "127.0.0.1:5432"); err == nil {
				conn.Close()
				t.Error("port 5432 is open on the host")
			}
		})
	}
}

// activateRole: NAMES COMMAND... — becomes the command, with the descriptors from 3 on
// as systemd passes them (sd_listen_fds(3)).
func activateRole(args []string) error {
	names := strings.Split(args[0], ":")
	for n := range names {
		if _, err := unix.FcntlInt(uintptr(3+n), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("descriptor %d: %w", 3+n, err)
		}
	}
	env := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+args[0])
	return syscall.Exec(args[1], args[1:], env)
}

// TestPublishedActivation: listeners that somebody with more rights has opened
// (systemd) are published, ports below 1024 among them.
func TestPublishedActivation(t *testing.T) {
	var files []*os.File
	give := func(l any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		l.(io.Closer).Close()
		files = append(files, f)
	}
	give(net.Listen("tcp", host4+":80"))
	give(net.Listen("tcp", "127.0.0.1:81"))
	give(net.ListenPacket("udp", host4+":53"))
	a := ordinary(t)
	seen := a.runtime + "/environment"
	cmd := a.command(context.Background(), probe(), "@activate", "web:local:names", lab.dir+"/postern", "run", "--name", "act",
		"-p", "fd:web:8080", "-p", "81:8080", "-p", "fd:names:53/udp", "--", "sh", "-c", "env >"+seen+"; ls -l /proc/self/fd >>"+seen+"; cat")
	cmd.ExtraFiles = files
	i := a.launch(t, "act", cmd)
	i.mayTalk = !lab.root
	i.witness(t, "tcp4,0.0.0.0:8080", "udp4,0.0.0.0:53")
	for range 2 {
		for _, q := range []struct {
			network, to, want string
			ns                *netns
		}{
			{"tcp", host4 + ":80", remote4, lab.remote},
			{"tcp", "127.0.0.1:81", gateways[0], nil},
			{"udp", host4 + ":53", remote4, lab.remote},
		} {
			got := client{ns: q.ns}.mustAsk(t, q.network, q.to)
			if got.seen.Addr().String() != q.want {
				t.Errorf("%s %s: the server saw %v, want %s", q.network, q.to, got.seen, q.want)
			}
		}
		i.mayTalk = true
		kill(t, i.mustStatus(t).EnginePID) // and once more with its successor
	}
	b, err := os.ReadFile(seen)
	if err != nil || bytes.Contains(b, []byte("LISTEN_")) || bytes.Contains(b, []byte("socket:")) {
		t.Errorf("the command saw %v:\n%s", err, b)
	}
	// A rule that ends gives its listener back.
	c := i.control()
	if err := c.remove(1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.add("fd:web:8080"); err != nil {
		t.Fatal(err)
	}
	client{ns: lab.remote}.mustAsk(t, "tcp", host4+":80")
	for _, f := range files {
		f.Close()
	}
}

// TestPublishedProxy: the PROXY protocol's header comes before the client's first
// byte, and says what the server would have seen.
func TestPublishedProxy(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		a := ordinary(t)
		rules := []string{"0.0.0.0:8001:80,proxy=v1", "[::]:8001:80,proxy=v1", "0.0.0.0:8002:80,proxy=v2", "[::]:8002:80,proxy=v2", "8003:80,proxy=v1"}
		i := s.begin(t, a, rules...)
		i.witness(t, "tcp4,0.0.0.0:80", "tcp6,[::]:80")
		for _, q := range []struct {
			to string
			ns *netns
		}{
			{host4 + ":8001", lab.remote}, {"[" + host6 + "]:8001", lab.remote}, {host4 + ":8002", lab.remote},
			{"[" + host6 + "]:8002", lab.remote}, {"127.0.0.1:8003", nil}, {"[::1]:8003", nil}, {host4 + ":8001", nil},
		} {
			proxied(t, client{ns: q.ns}, netip.MustParseAddrPort(q.to))
		}
	})
}

// proxied asks a witness, which sends the header back.
func proxied(t *testing.T, c client, to netip.AddrPort) {
	t.Helper()
	conn, err := c.dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	own := netip.MustParseAddrPort(conn.LocalAddr().String())
	want := headerV1(own, to)
	if to.Port() == 8002 {
		want = headerV2(own, to)
	}
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil { // what the witness saw
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, word); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+len(word))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want+word {
		t.Errorf("%v to %v: the server got %q, %v; want %q", own, to, got, err, want+word)
	}
}

// headerV1 is the header of the PROXY protocol's version 1 (proxy-protocol.txt 2.1).
func headerV1(from, to netip.AddrPort) string {
	family := 4
	if from.Addr().Is6() {
		family = 6
	}
	return fmt.Sprintf("PROXY TCP%d %v %v %d %d\r\n", family, from.Addr(), to.Addr(), from.Port(), to.Port())
}

// headerV2 is version 2 (2.2).
func headerV2(from, to netip.AddrPort) string {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c")
	if from.Addr().Is6() {
		b[13], b[15] = 0x21, 36
	}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return string(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, from.Port()), to.Port()))
}

// TestPublishedWildcardServer: a UDP server on every address answers from the
// container's own one; clients that were taken to its loopback get the answer all the
// same.
func TestPublishedWildcardServer(t *testing.T) {
	overSettings(t, splicing, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "0.0.0.0:8001:127.0.0.1:53/udp", "[::]:8001:[::1]:53/udp")
		i.witness(t, "udp4,0.0.0.0:53", "udp6,[::]:53")
		for _, q := range []struct {
			to string
			ns *netns
		}{{host4 + ":8001", lab.remote}, {"[" + host6 + "]:8001", lab.remote}, {host4 + ":8001", nil}, {"127.0.0.1:8001", nil}} {
			got, err := client{ns: q.ns, limit: 5 * time.Second}.ask("udp", q.to)
			if err != nil {
				t.Errorf("%s: %v", q.to, err)
				continue
			}
			t.Logf("client %v, the server saw %v", got.own, got.seen)
		}
	})
}
