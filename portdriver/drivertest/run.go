package drivertest

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-net/postern/portdriver"
)

// suite is one run.
type suite struct {
	Harness
	World
	container *helper
	driver    driverProcess
	places    []place
	seen      table
	// first is what the driver's process held after its first connection.
	first     usage
	firstOpen map[string]int
	// hostPort and serverPort are the last ones given out.
	hostPort, serverPort uint16
}

// testCase is one thing that is owed.
type testCase struct {
	name string
	// holds is the behaviour and, where there is one, the source that demands it.
	holds string
	// needs are the features without which the case makes no sense.
	needs []Feature
	run   func(*suite, *testing.T)
}

// cases is the whole suite, in the order in which it runs.
func cases() []testCase {
	return slices.Concat(sourceCases, streamCases, endCases, crowdCases, ruleCases, datagramCases, furtherCases, shortageCases)
}

// Run runs every case whose features the harness claims.
func Run(t *testing.T, h Harness) {
	s := start(t, h)
	t.Logf("%s claims: %s", h.Name, listed(h.Claims))
	for _, c := range cases() {
		if !h.claims(c.needs...) {
			t.Logf("left out: %s, which needs: %s", c.name, listed(c.needs))
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Logf("holds: %s", c.holds)
			c.run(s, t)
		})
	}
	t.Logf("what the server saw, by client:\n%s", s.seen.String())
}

// start makes the world and the driver in it.
func start(t *testing.T, h Harness) *suite {
	t.Helper()
	s := &suite{Harness: h, hostPort: 20000, serverPort: 5000}
	s.places = places(makeLAN(t))
	s.World, s.container = makeWorld(t, h)
	s.driver = startDriver(t, h, s.World)
	s.first = s.firstUsage(t)
	return s
}

func listed(features []Feature) string {
	list := make([]string, len(features))
	for i, f := range features {
		list[i] = string(f)
	}
	return strings.Join(list, ", ")
}

// families are those that the driver claims.
func (s *suite) families() []family {
	if s.claims(IPv6) {
		return []family{v4, v6}
	}
	return []family{v4}
}

// target is one of the container's addresses to publish.
type target struct {
	name string
	addr netip.Addr
}

// targets are the container's addresses that the driver can take a client to.
func (s *suite) targets(f family) []target {
	list := []target{{"address", pick(f, s.Addresses.Container4, s.Addresses.Container6)}}
	if s.claims(Loopback) {
		list = append(list, target{"loopback", pick(f, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())})
	}
	return list
}

// ownTarget is the container's address of a family.
func (s *suite) ownTarget(f family) netip.Addr { return s.targets(f)[0].addr }

// remote and onLoopback are two of the three places.
func (s *suite) remote() place     { return s.places[0] }
func (s *suite) onLoopback() place { return s.places[2] }

// newServerPort is a port of the container that nobody has used.
func (s *suite) newServerPort() uint16 {
	s.serverPort++
	return s.serverPort
}

// newHostPorts is the first of n ports in a row that nobody has used.
func (s *suite) newHostPorts(n int) uint16 {
	first := s.hostPort + 1
	s.hostPort += uint16(n)
	return first
}

// published is a rule in force.
type published struct {
	s    *suite
	rule int
	spec portdriver.Spec
	gone bool
}

// at is a port of the rule, as clients of a place know it.
func (p *published) at(from place, f family) netip.AddrPort {
	return netip.AddrPortFrom(from.host(f), p.spec.Host.Port)
}

// publish puts a rule in force until the test ends. The host's address and port are
// filled in if they are missing.
func (s *suite) publish(tb testing.TB, spec portdriver.Spec) *published {
	tb.Helper()
	p, err := s.tryPublish(tb, spec)
	if err != nil {
		tb.Fatalf("publish %s:%d to %s:%d/%s: %v", spec.Host.Addr, spec.Host.Port, spec.Container.Addr,
			spec.Container.Port, spec.Proto, err)
	}
	return p
}

func (s *suite) tryPublish(tb testing.TB, spec portdriver.Spec) (*published, error) {
	spec.Count = max(spec.Count, 1)
	if spec.Host.Port == 0 && spec.Host.Path == "" {
		spec.Host.Port = s.newHostPorts(spec.Count)
	}
	a, _, err := s.driver.call(driverOrder{Publish: &spec})
	if err != nil {
		return nil, err
	}
	p := &published{s: s, rule: a.Rule, spec: spec}
	tb.Cleanup(func() { p.remove(tb) })
	return p, nil
}

// remove ends the rule; once is enough.
func (p *published) remove(tb testing.TB) {
	tb.Helper()
	if p.gone {
		return
	}
	p.gone = true
	if _, _, err := p.s.driver.call(driverOrder{Unpublish: &p.rule}); err != nil {
		tb.Errorf("unpublish rule %d: %v", p.rule, err)
	}
}

// spec is a rule for clients of a place.
func (s *suite) spec(proto portdriver.Proto, from place, f family, to netip.AddrPort) portdriver.Spec {
	return portdriver.Spec{
		Proto:     proto,
		Host:      portdriver.Side{Addr: from.host(f)},
		Container: portdriver.Side{Addr: to.Addr(), Port: to.Port()},
	}
}

// serve publishes a TCP server to a place: what it listens on, and the rule.
func (s *suite) serve(tb testing.TB, from place, f family) (*net.TCPListener, *published) {
	tb.Helper()
	addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
	return s.listen(tb, addr, -1), s.publish(tb, s.spec(portdriver.TCP, from, f, addr))
}

// pair is one connection, both ends.
type pair struct{ client, server *net.TCPConn }

// connect makes a connection to a published server.
func (s *suite) connect(tb testing.TB, from place, to netip.AddrPort, l *net.TCPListener) pair {
	tb.Helper()
	return s.connectFrom(tb, from, 0, to, l)
}

func (s *suite) connectFrom(tb testing.TB, from place, port uint16, to netip.AddrPort, l *net.TCPListener) pair {
	tb.Helper()
	client, err := from.dial(tb, port, to)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close() })
	server := accept(tb, l)
	soon(tb, client)
	return pair{client, server}
}

// accept takes a connection at the server.
func accept(tb testing.TB, l *net.TCPListener) *net.TCPConn {
	tb.Helper()
	soon(tb, l)
	c, err := l.AcceptTCP()
	if err != nil {
		tb.Fatalf("the server's connection: %v", err)
	}
	tb.Cleanup(func() { c.Close() })
	soon(tb, c)
	return c
}

// soon bounds everything that will be done with c.
func soon(tb testing.TB, c interface{ SetDeadline(time.Time) error }) {
	tb.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
}
