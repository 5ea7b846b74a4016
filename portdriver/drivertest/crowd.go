package drivertest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-net/postern/portdriver"
)

var crowdCases = []testCase{
	{
		name:  "TCP/Concurrent",
		holds: "500 connections at once, each with bytes of its own",
		run:   concurrent,
	},
	{
		name:  "TCP/Idle",
		holds: "a server that does not read, a client that does not, and clients who say nothing, hold nobody else",
		run:   idle,
	},
	{
		name:  "TCP/FullBacklog",
		holds: "a server that does not accept holds only its own clients",
		run:   fullBacklog,
	},
}

// crowd is how many connections there are at once.
const crowd = 500

// echo serves a listener until it is closed: each client gets its bytes back.
func echo(l *net.TCPListener) {
	if err := l.SetDeadline(time.Time{}); err != nil {
		return
	}
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 32<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// visit is one client's whole stay at an echo server, n bytes; meanwhile runs after
// the first answer.
func visit(c *net.TCPConn, seed uint64, n int, meanwhile func()) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * patience)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	if _, err := c.Write([]byte{'!'}); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("first answer: %w", err)
	}
	meanwhile()
	go func() { sent <- produce(c, seed, n) }()
	return errors.Join(consume(c, seed, n), <-sent)
}

// together lets n clients be there at the same time.
func (s *suite) together(t testing.TB, n int, from place, at netip.AddrPort) {
	t.Helper()
	errs := make(chan error, n)
	arrived, leave := make(chan struct{}, n), make(chan struct{})
	for i := range n {
		go func() {
			c, err := from.dial(t, 0, at)
			if err == nil {
				err = visit(c, uint64(i), 4096, func() { arrived <- struct{}{}; <-leave })
			}
			errs <- err
		}()
	}
	failed := 0
	for got := 0; got < n-failed; {
		select {
		case <-arrived:
			got++
		case err := <-errs:
			failed++
			t.Errorf("a client: %v", err)
		}
	}
	close(leave)
	for range n - failed {
		if err := <-errs; err != nil {
			t.Errorf("a client: %v", err)
		}
	}
}

func concurrent(s *suite, t *testing.T) {
	for _, f := range s.families() {
		l, p := s.serve(t, s.remote(), f)
		go echo(l)
		began := time.Now()
		s.together(t, crowd, s.remote(), p.at(s.remote(), f))
		t.Logf("%s: %d connections in %v", f, crowd, time.Since(began).Round(time.Millisecond))
	}
}

// stuff sends until nothing more is taken for a while.
func stuff(t *testing.T, c *net.TCPConn) {
	t.Helper()
	buf := make([]byte, 256<<10)
	for total := 0; total < 256<<20; {
		if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(buf)
		total += n
		if timedOut(err) {
			return
		}
		if err != nil {
			t.Fatalf("stuffing a connection: %v", err)
		}
	}
	t.Error("256 MiB were taken for a side that does not read: something buffers without bound")
}

func idle(s *suite, t *testing.T) {
	f := v4
	l, p := s.serve(t, s.remote(), f)
	at := p.at(s.remote(), f)
	stuff(t, s.connect(t, s.remote(), at, l).client) // the server does not read
	stuff(t, s.connect(t, s.remote(), at, l).server) // the client does not read
	for range 50 {
		s.connect(t, s.remote(), at, l) // neither says anything
	}
	s.prompt(t, at, l)
	other, q := s.serve(t, s.remote(), f)
	s.prompt(t, q.at(s.remote(), f), other)
}

// prompt checks that a connection works.
func (s *suite) prompt(t *testing.T, at netip.AddrPort, l *net.TCPListener) {
	t.Helper()
	began := time.Now()
	c := s.connect(t, s.remote(), at, l)
	exchange(t, c.client, c.server, "still there?")
	t.Logf("served within %v", time.Since(began).Round(time.Millisecond))
}

func fullBacklog(s *suite, t *testing.T) {
	f := v4
	addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
	s.listen(t, addr, 0)
	p := s.publish(t, s.spec(portdriver.TCP, s.remote(), f, addr))
	for range 30 {
		c, err := s.remote().dial(t, 0, p.at(s.remote(), f))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	l, q := s.serve(t, s.remote(), f)
	s.prompt(t, q.at(s.remote(), f), l)
}
