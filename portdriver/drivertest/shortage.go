package drivertest

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

var shortageCases = []testCase{
	{
		name:  "Shortage/Descriptors",
		holds: "out of descriptors (EMFILE, accept(2)) a port pauses; once some are free it serves again, and no listener is lost",
		needs: []Feature{Recover},
		run:   shortage,
	},
	{
		name:  "Shortage/NothingLeft",
		holds: "after all this the driver's process has as many descriptors and goroutines as after its first connection",
		run:   nothingLeft,
	},
}

// usage is what a driver's process holds.
type usage struct{ descriptors, goroutines int }

func (s *suite) usage(tb testing.TB) usage {
	u := usage{goroutines: s.driver.goroutines(tb)}
	for _, n := range s.driver.descriptors(tb) {
		u.descriptors += n
	}
	return u
}

// settle waits until the usage is ok, and returns the last one.
func (s *suite) settle(tb testing.TB, ok func(usage) bool) (u usage) {
	eventually(func() bool {
		u = s.usage(tb)
		return ok(u)
	})
	return u
}

// firstUsage is the usage after one connection has come and gone.
func (s *suite) firstUsage(tb testing.TB) usage {
	tb.Helper()
	l, p := s.serve(tb, s.remote(), v4)
	defer l.Close()
	go echo(l)
	before := s.usage(tb)
	s.together(tb, 1, s.remote(), p.at(s.remote(), v4))
	p.remove(tb)
	// What it keeps is kept by then, and what the connection needed is gone.
	var last usage
	defer func() { s.firstOpen = s.driver.descriptors(tb) }()
	return s.settle(tb, func(u usage) bool {
		same := u == last
		last = u
		return same && u.descriptors <= before.descriptors+s.Kept
	})
}

func nothingLeft(s *suite, t *testing.T) {
	l, p := s.serve(t, s.remote(), v4)
	go echo(l)
	for range 3 {
		s.together(t, crowd, s.remote(), p.at(s.remote(), v4))
	}
	p.remove(t)
	ok := func(u usage) bool {
		return u.descriptors <= s.first.descriptors+s.Kept && u.goroutines <= s.first.goroutines
	}
	u := s.settle(t, ok)
	t.Logf("%+v, after the first connection %+v", u, s.first)
	if !ok(u) {
		t.Errorf("something is left: %+v, want %+v and no more than %d descriptors kept for later; open are %v, were %v",
			u, s.first, s.Kept, s.driver.descriptors(t), s.firstOpen)
	}
}

// spare is how many descriptors the driver has beyond those of its first connection,
// hungry how many clients come.
const spare, hungry = 24, 200

// wanted is how soon a port has to serve again. Machines that run the suite beside
// other work get more, but are told.
const wanted = time.Second

func shortage(s *suite, t *testing.T) {
	l, p := s.serve(t, s.remote(), v4)
	go echo(l)
	other, q := s.serve(t, s.remote(), v4)
	go echo(other)
	s.together(t, 1, s.remote(), p.at(s.remote(), v4))
	// What is kept for later can be given back, so it does not count.
	was := s.driver.limitDescriptors(t, uint64(s.first.descriptors+spare))
	defer s.driver.limitDescriptors(t, was)
	var clients []*net.TCPConn
	for i := range hungry {
		at := p.at(s.remote(), v4)
		if i%2 == 1 {
			at = q.at(s.remote(), v4)
		}
		c, err := s.remote().dial(t, 0, at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	served := s.answered(clients)
	t.Logf("%d of %d clients were served with %d descriptors to spare", served, hungry, spare)
	if served == hungry {
		t.Error("there was no shortage: this case tests nothing")
	}
	for _, c := range clients {
		c.Close()
	}
	s.servesAgain(t, "the clients have left", p.at(s.remote(), v4), q.at(s.remote(), v4))
	s.driver.limitDescriptors(t, was)
	s.servesAgain(t, "the limit is lifted", p.at(s.remote(), v4), q.at(s.remote(), v4))
	s.together(t, hungry, s.remote(), p.at(s.remote(), v4))
}

// answered is how many of the clients get an answer within a second.
func (s *suite) answered(clients []*net.TCPConn) int {
	answers := make(chan bool, len(clients))
	for _, c := range clients {
		go func() { answers <- ask(c, time.Second) == nil }()
	}
	n := 0
	for range clients {
		if <-answers {
			n++
		}
	}
	return n
}

// ask sends a byte and waits for the answer.
func ask(c *net.TCPConn, limit time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{'?'}); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// servesAgain measures how long it takes until a new client of each port is served.
// One that is reset comes again, as clients do.
func (s *suite) servesAgain(t *testing.T, since string, ports ...netip.AddrPort) {
	t.Helper()
	for _, at := range ports {
		began, tries := time.Now(), 0
		var err error
		ok := eventually(func() bool {
			var c *net.TCPConn
			tries++
			if c, err = s.remote().dial(t, 0, at); err != nil {
				return false
			}
			defer c.Close()
			err = ask(c, patience)
			return err == nil
		})
		took := time.Since(began).Round(time.Millisecond)
		if !ok {
			t.Errorf("since %s, %s has not served for %v: %v", since, at, took, err)
			continue
		}
		t.Logf("since %s, %s serves again after %v and %d attempts (wanted: %v)", since, at, took, tries, wanted)
	}
}
