package hostsock

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// fresh makes a UDP socket as the agent does.
func fresh(t *testing.T, v6 bool) int {
	t.Helper()
	domain := unix.AF_INET
	if v6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// nine returns another local address of a's family.
func nine(t *testing.T, a netip.Addr) netip.Addr {
	t.Helper()
	if a.Is4() {
		return netip.MustParseAddr("127.0.0.9")
	}
	other := netip.MustParseAddr("2001:db8::9")
	if err := nstest.AddAddr("lo", netip.PrefixFrom(other, 128)); err != nil && !errors.Is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	return other
}

// A pair takes its own datagrams only, tells their hop limit, and after Part takes
// no more but gives what it has.
func TestJoinAndPart(t *testing.T) {
	for _, a := range loopbacks {
		app, remote := udp(t, a), netip.AddrPortFrom(nine(t, a), 4242)
		s, err := Join(fresh(t, a.Is6()), remote, app.LocalAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var w Writer
		if _, err := w.Send(udp(t, a), Packet{To: remote, Payload: []byte("other")}); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		for _, b := range []string{"one", "two"} {
			if _, err := w.Send(app, Packet{To: remote, TTL: 33, Payload: []byte(b)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Part(); err != nil {
			t.Fatal(err)
		}
		var r recorder
		new(Drainer).Drain(s, &r)
		if len(r.messages) != 2 || r.messages[0].From != app.LocalAddr() || r.messages[0].TTL != 33 || string(r.messages[1].Payload) != "two" {
			t.Fatalf("%+v", r.messages)
		}
		if _, err := w.Send(s, Packet{Payload: []byte("where to")}); !errors.Is(err, unix.EDESTADDRREQ) {
			t.Errorf("sent without a connection: %v", err)
		}
		s.Close()
		if err := s.Part(); err == nil {
			t.Error("parted a closed socket")
		}
	}
}

func TestJoinSendsToItsPeer(t *testing.T) {
	p := newPoller(t)
	for _, a := range loopbacks {
		app, remote := udp(t, a), netip.AddrPortFrom(nine(t, a), 4243)
		var r recorder
		if err := p.Add(app, &r); err != nil {
			t.Fatal(err)
		}
		s, err := Join(fresh(t, a.Is6()), remote, app.LocalAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var w Writer
		payload := bytes.Repeat([]byte("0123456789"), 130)
		if n, err := w.Send(s, Packet{Segment: 100, Payload: payload}); n != 13 || err != nil {
			t.Fatalf("%d sent, %v", n, err)
		}
		eventually(t, "datagrams", func() bool { return r.bytes() == len(payload) })
		if m := r.messages[0]; m.From != remote || m.Segment != 100 {
			t.Errorf("from %v in segments of %d", m.From, m.Segment)
		}
	}
}

// Take is for one message, however many the socket is used to.
func TestTakeOneByOne(t *testing.T) {
	for _, a := range loopbacks {
		app, remote := udp(t, a), netip.AddrPortFrom(nine(t, a), 4243)
		s, err := Join(fresh(t, a.Is6()), remote, app.LocalAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var w Writer
		var d Drainer
		var got texts
		if d.Take(s, &got) {
			t.Errorf("%v: took something from nothing", a)
		}
		for _, b := range []string{"one", "two", "six"} {
			if _, err := w.Send(app, Packet{To: remote, Payload: []byte(b)}); err != nil {
				t.Fatal(err)
			}
		}
		s.appetite.got(2, 2, 3) // there was more than was asked for
		if !d.Take(s, &got) || len(got) != 1 || got[0] != "one" {
			t.Errorf("%v: took %q, want the first", a, got)
		}
		d.Drain(s, &got)
		if strings.Join(got, "") != "onetwosix" {
			t.Errorf("%v: got %q in the end", a, got)
		}
		s.Close()
		if d.Take(s, &got) {
			t.Errorf("%v: took something from a closed socket", a)
		}
	}
}

// texts collects payloads.
type texts []string

func (x *texts) Receive(m Message) { *x = append(*x, string(m.Payload)) }
func (*texts) Report(Report)       {}

func TestJoinFails(t *testing.T) {
	taken := udp(t, loopbacks[0])
	for _, c := range []struct {
		name          string
		fd            int
		local, remote netip.AddrPort
		want          error
	}{
		{"in use", fresh(t, false), taken.LocalAddr(), taken.LocalAddr(), unix.EADDRINUSE},
		{"foreign", fresh(t, false), netip.MustParseAddrPort("192.0.2.1:1000"), taken.LocalAddr(), unix.EADDRNOTAVAIL},
		{"family", fresh(t, true), netip.AddrPortFrom(loopbacks[1], 4244), taken.LocalAddr(), unix.ENETUNREACH},
		{"no socket", -1, taken.LocalAddr(), taken.LocalAddr(), unix.EBADF},
	} {
		s, err := Join(c.fd, c.local, c.remote)
		if err == nil {
			s.Close()
			t.Errorf("%s: no error", c.name)
		} else if c.name != "family" && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if _, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%s: the descriptor was left open", c.name)
		}
	}
	if _, err := Intercept(-1); err == nil {
		t.Error("intercepted at nothing")
	}
}

// Datagrams tell where they were sent to, whatever the socket is bound to.
func TestInterceptTellsTheTarget(t *testing.T) {
	p := newPoller(t)
	for _, a := range loopbacks {
		any := netip.IPv4Unspecified()
		if a.Is6() {
			any = netip.IPv6Unspecified()
		}
		s, err := Intercept(bound(t, any, false))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		var r recorder
		if err := p.Add(s, &r); err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(nine(t, a), s.LocalAddr().Port())
		from := udp(t, a)
		var w Writer
		if _, err := w.Send(from, Packet{To: to, TTL: 7, Segment: 10, Payload: make([]byte, 25)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "datagrams", func() bool { return r.bytes() == 25 })
		if m := r.messages[0]; m.Target != to || m.From != from.LocalAddr() || m.TTL != 7 || m.Segment != 10 {
			t.Errorf("%+v, want target %v", m, to)
		}
	}
}

// Whatever sizes follow each other, nothing is lost, joined wrongly or reordered.
func TestReceiveKeepsDatagramsApart(t *testing.T) {
	from, to, third := udp(t, loopbacks[0]), udp(t, loopbacks[0]), udp(t, loopbacks[0])
	var w Writer
	var d Drainer
	sizes := []int{1400, 1400, 1400, 1400, 700, 1400, 0, 0, 1, 1400, 1400, 9000, 1400, 60000, 1400, 1400, 1400, 1400, 1400, 10}
	for round := range 20 {
		var want []string
		for i, n := range sizes {
			payload := bytes.Repeat([]byte{byte(round + i)}, n)
			s := from
			if round%3 == 1 && i%4 == 3 {
				s = third
			}
			if _, err := w.Send(s, Packet{To: to.LocalAddr(), Payload: payload}); err != nil {
				t.Fatal(err)
			}
			want = append(want, s.LocalAddr().String()+string(payload))
		}
		var r recorder
		d.Drain(to, &r)
		var got []string
		for _, m := range r.messages {
			for first := true; first || len(m.Payload) > 0; first = false {
				n := len(m.Payload)
				if m.Segment > 0 {
					n = min(n, m.Segment)
				}
				got = append(got, m.From.String()+string(m.Payload[:n]))
				m.Payload = m.Payload[n:]
			}
		}
		if len(got) != len(want) {
			t.Fatalf("round %d: %d datagrams, want %d", round, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("round %d: datagram %d differs", round, i)
			}
		}
	}
}

// A busy flow of one size arrives in trains.
func TestReceiveCouples(t *testing.T) {
	from, to := udp(t, loopbacks[0]), udp(t, loopbacks[0])
	var w Writer
	var d Drainer
	largest := 0
	for range 5 {
		for range 50 {
			if _, err := w.Send(from, Packet{To: to.LocalAddr(), Payload: make([]byte, 1000)}); err != nil {
				t.Fatal(err)
			}
		}
		var r recorder
		d.Drain(to, &r)
		if r.bytes() != 50000 {
			t.Fatalf("%d bytes", r.bytes())
		}
		for _, m := range r.messages {
			largest = max(largest, len(m.Payload))
		}
	}
	if largest != maxMessages*1000 {
		t.Errorf("trains of %d bytes at most, want %d datagrams", largest, maxMessages)
	}
}

func TestReceiveDoesNotAllocate(t *testing.T) {
	from, to := udp(t, loopbacks[0]), udp(t, loopbacks[0])
	var w Writer
	var d Drainer
	payload := make([]byte, 1000)
	var h Handler = nobody{}
	if n := testing.AllocsPerRun(100, func() {
		for range 20 {
			_, _ = w.Send(from, Packet{To: to.LocalAddr(), Payload: payload})
		}
		d.Drain(to, h)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type nobody struct{}

func (nobody) Receive(Message) {}
func (nobody) Report(Report)   {}
