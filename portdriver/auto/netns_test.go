package auto

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/sockdiag"
	"github.com/postern-net/postern/userns/spawn"
)

// TestMain lets the test binary be a network namespace's inhabitant. The host is a
// namespace too: on the machine's loopback, others might take the ports.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if os.Args[0] == "inhabitant" {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(nstest.Main(m))
}

// inhabited is a container's network namespace, with nothing in it.
func inhabited(t *testing.T) *join.Target {
	t.Helper()
	maps, err := spawn.PlanMaps(context.Background(), spawn.Single)
	if err != nil {
		t.Fatal(err)
	}
	in, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in, nil, os.Stderr}, Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keep.Close(); p.Close() })
	target, err := join.OpenPID(p.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

// diag makes a sock_diag socket in the namespace.
func diag(t *testing.T, target *join.Target) *os.File {
	t.Helper()
	s, err := target.Open(join.Request{})
	if err != nil {
		t.Fatal(err)
	}
	s.Route.Close()
	return s.Diag
}

// freePorts are ports that nobody has on the host's loopback at this moment.
func freePorts(t *testing.T, n int) (ports []uint16) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, netip.MustParseAddrPort(l.Addr().String()).Port())
	}
	return ports
}

// listen has the container listen; the result ends it.
func listen(t *testing.T, target *join.Target, addr string, port uint16) func() {
	t.Helper()
	kind := handoff.SocketTCP4
	if netip.MustParseAddr(addr).Is6() {
		kind = handoff.SocketTCP6
	}
	f, err := target.Listen(kind, netip.AddrPortFrom(netip.MustParseAddr(addr), port))
	if err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

func eventually(t *testing.T, what string, done func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !done() {
		if time.Since(start) > 30*time.Second {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

// The whole chain: a listener in the container appears on the host's loopback, and
// goes; a port that the host has is published as soon as it is free.
func TestListenersAppearOnTheHost(t *testing.T) {
	target := inhabited(t)
	registry := portdriver.New(portdriver.Config{})
	defer registry.Close()
	f := New(Config{Policy: Policy{Addresses: addresses}, Registry: registry})
	defer f.Close()
	w, err := sockdiag.Watch(sockdiag.Config{Dump: diag(t, target), Events: diag(t, target), Changed: f.Update})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	ports := freePorts(t, 3)
	inForce := func() []string {
		var list []string
		for _, r := range registry.Rules() {
			if !r.Auto {
				t.Errorf("rule %d is not automatic", r.ID)
			}
			list = append(list, short([]portdriver.Spec{r.Spec})...)
		}
		slices.Sort(list)
		return list
	}
	is := func(want ...string) func() bool {
		slices.Sort(want)
		return func() bool { return slices.Equal(inForce(), want) }
	}
	text := func(port uint16, target string) string {
		p := strconv.Itoa(int(port))
		return "tcp " + p + " " + target + " " + p
	}

	end0 := listen(t, target, "0.0.0.0", ports[0])
	end1 := listen(t, target, "::1", ports[1])
	born := eventually(t, "two births", is(text(ports[0], "own"), text(ports[1], "::1")))
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0]))))
	if err != nil {
		t.Errorf("the host does not listen: %v", err)
	} else {
		c.Close()
	}
	end0()
	died := eventually(t, "a death", is(text(ports[1], "::1")))
	t.Logf("published after %v, gone after %v", born, died)
	if _, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[0])))); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the host still listens: %v", err)
	}

	taken, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[2]))))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	end2 := listen(t, target, "0.0.0.0", ports[2])
	eventually(t, "a failed rule", func() bool { return f.Status() == Status{Published: 1, Failed: 1} })
	taken.Close()
	eventually(t, "the port to be free", is(text(ports[1], "::1"), text(ports[2], "own")))
	end1()
	end2()
	eventually(t, "the end", is())
}
