package drivertest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

var endCases = []testCase{
	{
		name:  "TCP/HalfClose",
		holds: "each direction ends by itself (RFC 9293, section 3.6): the other goes on",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, halfClose) },
	},
	{
		name:  "TCP/Reset",
		holds: "a reset is passed on as a reset (RFC 9293, section 3.5.2), so that an aborted transfer does not look complete",
		needs: []Feature{Resets},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, reset) },
	},
	{
		name:  "TCP/ResetFreesTheOther",
		holds: "when one side is gone for good the other one's connection ends",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, gone) },
	},
	{
		name:  "TCP/Refused",
		holds: "the client of a port on which nothing listens is reset at once (RFC 9293, section 3.10.7.1)",
		needs: []Feature{Refusal},
		run: func(s *suite, t *testing.T) {
			s.eachWay(t, func(t *testing.T, f family, from place, to target) { refused(s, t, f, from, to) })
		},
	},
	{
		name:  "TCP/RefusedEnds",
		holds: "the client of a port on which nothing listens is let go",
		run: func(s *suite, t *testing.T) {
			s.eachFamily(t, func(s *suite, t *testing.T, f family) { refused(s, t, f, s.onLoopback(), s.targets(f)[0]) })
		},
	},
}

func halfClose(s *suite, t *testing.T, f family) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			l, p := s.serve(t, s.remote(), f)
			c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
			one, other := c.client, c.server
			if first == "server" {
				one, other = other, one
			}
			exchange(t, one, other, "before")
			if err := one.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if n, err := other.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("%d bytes and %v after the end, want EOF", n, err)
			}
			errs := make(chan error, 1)
			go func() { errs <- produce(other, 7, 1<<20) }()
			if err := errors.Join(consume(one, 7, 1<<20), <-errs); err != nil {
				t.Errorf("the other direction: %v", err)
			}
		})
	}
}

// abort closes a connection with a reset (SO_LINGER 0, socket(7)).
func abort(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// ends makes a connection and returns the side that goes and the side that stays.
func (s *suite) ends(t *testing.T, f family, first string) (goes, stays *net.TCPConn) {
	t.Helper()
	l, p := s.serve(t, s.remote(), f)
	c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
	exchange(t, c.client, c.server, "before")
	if first == "server" {
		return c.server, c.client
	}
	return c.client, c.server
}

func reset(s *suite, t *testing.T, f family) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			goes, stays := s.ends(t, f, first)
			abort(t, goes)
			if n, err := stays.Read(make([]byte, 1)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%d bytes and %v after a reset, want ECONNRESET", n, err)
			}
		})
	}
}

func gone(s *suite, t *testing.T, f family) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			goes, stays := s.ends(t, f, first)
			abort(t, goes)
			if n, err := stays.Read(make([]byte, 1)); n != 0 || err == nil || timedOut(err) {
				t.Errorf("%d bytes and %v, want an end", n, err)
			}
			// Whoever goes on to send is told so, too.
			if !eventually(func() bool { _, err := stays.Write([]byte("x")); return err != nil && !timedOut(err) }) {
				t.Error("bytes for a side that is gone are still taken")
			}
		})
	}
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func refused(s *suite, t *testing.T, f family, from place, to target) {
	p := s.publish(t, s.spec(portdriver.TCP, from, f, netip.AddrPortFrom(to.addr, s.newServerPort())))
	s.refuses(t, from, p.at(from, f))
}

// refuses checks that a client is let go.
func (s *suite) refuses(t *testing.T, from place, at netip.AddrPort) {
	t.Helper()
	began := time.Now()
	c, err := from.dial(t, 0, at)
	if err == nil {
		defer c.Close()
		soon(t, c)
		_, err = c.Read(make([]byte, 1))
	}
	t.Logf("let go after %v: %v", time.Since(began).Round(time.Millisecond), err)
	reset := errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED)
	if !reset && (s.claims(Refusal) || err != io.EOF) {
		t.Errorf("the client got %v", err)
	}
}

// eventually polls until ok, within patience.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}
