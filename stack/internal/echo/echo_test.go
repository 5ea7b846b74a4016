package echo

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
)

var (
	client4, client6   = netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd00::100")
	outside4, outside6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

func addAddresses() error {
	for _, a := range []netip.Addr{outside4, outside6} {
		if err := nstest.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// allowPing opens ping sockets to the one group that there is, in the calling
// thread's namespace. A new namespace has the kernel's default, nobody.
func allowPing() error { return nstest.Sysctl("net/ipv4/ping_group_range", "0 0") }

// namespace gives this process's own namespace what the tests need.
var namespace = sync.OnceValue(func() error { return errors.Join(addAddresses(), allowPing()) })

type reply struct {
	from, to netip.Addr
	id, seq  uint16
	payload  string
}

type failure struct {
	kind     icmp.Kind
	from, to netip.Addr
	quote    []byte
}

// container is the fake other side of a table.
type container struct {
	mu       sync.Mutex
	replies  []reply
	failures []failure
}

func (c *container) SendEchoReply(from, to netip.Addr, id, seq uint16, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies = append(c.replies, reply{from, to, id, seq, string(payload)})
}

func (c *container) SendError(kind icmp.Kind, _ uint32, from, to netip.Addr, quote []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, failure{kind, from, to, bytes.Clone(quote)})
}

func (c *container) wait(t *testing.T, replies, failures int) ([]reply, []failure) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		r, f := slices.Clone(c.replies), slices.Clone(c.failures)
		c.mu.Unlock()
		if len(r) >= replies && len(f) >= failures {
			return r, f
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d replies and %d errors within 10 s, want %d and %d", len(r), len(f), replies, failures)
		}
	}
}

func newTable(t *testing.T, change func(*Config)) (*Table, *container) {
	t.Helper()
	if err := namespace(); err != nil {
		t.Fatal(err)
	}
	c := &container{}
	cfg := Config{Guard: guard.Policy{Plan: netplan.Default()}, Flows: flow.NewTable(), Sender: c}
	if change != nil {
		change(&cfg)
	}
	tb, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tb.Close() })
	return tb, c
}

func count(tb *Table, c flow.Counter) uint64 { return tb.cfg.Flows.Counters.Load(c) }

func TestEchoKeepsIdentifierAndPayload(t *testing.T) {
	tb, c := newTable(t, nil)
	want := []reply{}
	for _, r := range []Request{
		{From: client4, To: outside4, ID: 1, Seq: 1, Payload: []byte("one"), TTL: 64},
		{From: client4, To: outside4, ID: 1, Seq: 2, Payload: []byte("two"), TTL: 30},
		{From: client4, To: outside4, ID: 65535, Seq: 65535, TTL: 64},
		{From: client4, To: outside4, ID: 0, Seq: 0, Payload: bytes.Repeat([]byte("x"), 60000), TTL: 64},
		{From: client6, To: outside6, ID: 1, Seq: 1, Payload: []byte("six"), TTL: 64},
	} {
		tb.Handle(r)
		want = append(want, reply{r.To, r.From, r.ID, r.Seq, string(r.Payload)})
		got, _ := c.wait(t, len(want), 0)
		if got[len(want)-1] != want[len(want)-1] {
			t.Errorf("got %+v, want %+v", got[len(want)-1], want[len(want)-1])
		}
	}
	if n := tb.cfg.Flows.Len(flow.Echo); n != 4 {
		t.Errorf("%d sessions", n)
	}
}

func TestUnavailableIsSaidOnceAndNothingForged(t *testing.T) {
	var log bytes.Buffer
	tb, c := newTable(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	closed := nstest.New(t)
	closed.Do(t, func() error {
		for i := range 5 {
			tb.Handle(Request{From: client4, To: outside4, ID: uint16(i), TTL: 64})
			tb.Handle(Request{From: client6, To: outside6, ID: uint16(i), TTL: 64})
		}
		return nil
	})
	if n := count(tb, flow.EchoUnavailable); n != 10 {
		t.Errorf("%d counted", n)
	}
	line := log.String()
	if strings.Count(line, "\n") != 1 || !strings.Contains(line, `sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"`) {
		t.Errorf("log %q", line)
	}
	if r, f := c.wait(t, 0, 0); len(r)+len(f) != 0 {
		t.Errorf("sent %+v %+v", r, f)
	}
	if n := tb.cfg.Flows.Len(flow.Echo); n != 0 {
		t.Errorf("%d sessions", n)
	}
	// No restart is needed once the setting is right.
	closed.Do(t, func() error {
		if err := errors.Join(addAddresses(), allowPing()); err != nil {
			return err
		}
		tb.Handle(Request{From: client4, To: outside4, ID: 9, Seq: 1, TTL: 64})
		return nil
	})
	c.wait(t, 1, 0)
}

func TestGuardAndSource(t *testing.T) {
	tb, c := newTable(t, func(c *Config) { c.Guard.HostLoopback = true })
	answered := 0
	for i, to := range []string{"127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1", "10.0.2.2", "64:ff9b::7f00:1"} {
		r := Request{From: client4, To: netip.MustParseAddr(to), ID: uint16(i), TTL: 64}
		if r.To.Is6() {
			r.From = client6
		}
		tb.Handle(r)
		answered++
	}
	tb.Handle(Request{From: client4, To: netip.MustParseAddr("224.0.0.1"), TTL: 64})
	tb.Handle(Request{From: client6, To: netip.MustParseAddr("ff02::1"), TTL: 64})
	tb.Handle(Request{From: client4, To: netip.MustParseAddr("255.255.255.255"), TTL: 64})
	_, f := c.wait(t, 0, answered)
	for _, e := range f {
		if e.kind != icmp.AdminProhibited {
			t.Errorf("%+v", e)
		}
	}
	if n := count(tb, flow.EchoRefusedGuard); n != uint64(answered+3) || len(f) != answered {
		t.Errorf("%d refused, %d answered", n, len(f))
	}
	tb.Handle(Request{From: netip.MustParseAddr("203.0.113.9"), To: outside4, TTL: 64})
	tb.Handle(Request{From: client6, To: outside4, TTL: 64})
	if count(tb, flow.DropSpoofed) != 1 || count(tb, flow.DropMalformed) != 1 || tb.cfg.Flows.Len(flow.Echo) != 0 {
		t.Error("a wrong source was not dropped")
	}
}

func TestTraceroute(t *testing.T) {
	nstest.NewRouter(t)
	for _, r := range []struct{ from, to, router netip.Addr }{
		{client4, nstest.Beyond, nstest.Router4},
		{client6, nstest.Beyond6, nstest.Router6},
	} {
		tb, c := newTable(t, nil)
		tb.Handle(Request{From: r.from, To: r.to, ID: 77, Seq: 1, TTL: 1})
		quote := icmp.AppendEcho(nil, icmp.Echo{ID: 77, Seq: 2}, r.from, r.to)
		tb.Handle(Request{From: r.from, To: r.to, ID: 77, Seq: 2, TTL: 2, Quote: quote})
		_, f := c.wait(t, 0, 2)
		if f[0].kind != icmp.TimeExceeded || f[0].from != netplan.Default().Of(r.from).Gateway {
			t.Errorf("hop 1: %+v", f[0])
		}
		if f[1].kind != icmp.TimeExceeded || f[1].from != r.router || f[1].to != r.from || !bytes.Equal(f[1].quote, quote) {
			t.Errorf("hop 2: %+v", f[1])
		}
		// Without a kept quote one is made up, with the container's identifier.
		tb.Handle(Request{From: r.from, To: r.to, ID: 77, Seq: 3, TTL: 2, Payload: []byte("payload")})
		_, f = c.wait(t, 0, 3)
		h, ok := inet.ParseQuote(f[2].quote)
		if !ok || h.Src != r.from || h.Dst != r.to {
			t.Fatalf("quote %x", f[2].quote)
		}
		if e, ok := icmp.ParseEcho(r.to.Is6(), h.Payload(f[2].quote)); !ok || e.Reply || e.ID != 77 || e.Seq != 3 {
			t.Errorf("quoted %+v", e)
		}
	}
}

func TestUnreachable(t *testing.T) {
	nstest.NewRouter(t)
	tb, c := newTable(t, nil)
	tb.Handle(Request{From: client4, To: nstest.Unreachable, ID: 1, Seq: 1, TTL: 64})
	_, f := c.wait(t, 0, 1)
	if f[0].kind != icmp.HostUnreachable || f[0].from != netplan.Default().V4.Gateway {
		t.Errorf("%+v", f[0])
	}
	tb.Handle(Request{From: client4, To: netip.MustParseAddr("198.18.0.1"), ID: 1, Seq: 2, TTL: 64})
	_, f = c.wait(t, 0, 2)
	if f[1].kind != icmp.NetUnreachable {
		t.Errorf("%+v", f[1])
	}
	// The session survives its errors.
	tb.Handle(Request{From: client4, To: outside4, ID: 1, Seq: 3, TTL: 64})
	c.wait(t, 1, 0)
}

func TestSessionsAreBounded(t *testing.T) {
	tb, _ := newTable(t, nil)
	now := time.Now()
	tb.now = func() time.Time { return now }
	for id := range flow.MaxEcho + 10 {
		tb.Handle(Request{From: client4, To: outside4, ID: uint16(id), TTL: 64})
	}
	if n, refused := len(tb.sessions), count(tb, flow.EchoRefusedLimit); n != flow.MaxEcho || refused != 10 {
		t.Errorf("%d sessions, %d refused", n, refused)
	}
	now = now.Add(settled)
	tb.Handle(Request{From: client4, To: outside4, ID: 0, TTL: 64}) // in use
	tb.Handle(Request{From: client4, To: outside4, ID: 1000, TTL: 64})
	tb.mu.Lock()
	kept, fresh, n := tb.sessions[key{client4, 0}], tb.sessions[key{client4, 1000}], len(tb.sessions)
	tb.mu.Unlock()
	if kept == nil || fresh == nil || n != flow.MaxEcho {
		t.Errorf("kept %v, fresh %v, %d sessions", kept != nil, fresh != nil, n)
	}
	tb.expire(now.Add(flow.EchoIdle))
	if n := tb.cfg.Flows.Len(flow.Echo); n != 0 {
		t.Errorf("%d after the idle time", n)
	}
}

func TestExpiryAndCloseLeaveNothing(t *testing.T) {
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	before, goroutines := fds(), runtime.NumGoroutine()
	tb, c := newTable(t, func(c *Config) { c.Idle = 20 * time.Millisecond })
	for id := range 10 {
		tb.Handle(Request{From: client4, To: outside4, ID: uint16(id), TTL: 64})
	}
	for deadline := time.Now().Add(10 * time.Second); tb.cfg.Flows.Len(flow.Echo) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("sessions do not end")
		}
	}
	tb.Handle(Request{From: client6, To: outside6, ID: 1, TTL: 64})
	c.wait(t, 1, 0)
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	if err := tb.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	tb.Handle(Request{From: client4, To: outside4, ID: 5, TTL: 64})
	if n := tb.cfg.Flows.Len(flow.Echo); n != 0 {
		t.Errorf("%d sessions after Close", n)
	}
	if n := fds(); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
}
