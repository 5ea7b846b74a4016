package portdriver

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
	"github.com/postern-net/postern/stack/stacktest"
)

// fakeEngine is a Backend that has copies of the sockets, like the real one.
type fakeEngine struct {
	t testing.TB
	// refuse is what Open fails with; wait is called by Open first.
	refuse error
	wait   func(Rule)
	// keep is to keep the copies after Shut, like an engine that hangs.
	keep bool

	mu     sync.Mutex
	copies map[int][]*os.File
	shut   []int
}

func newEngine(t testing.TB) *fakeEngine {
	e := &fakeEngine{t: t, copies: make(map[int][]*os.File)}
	t.Cleanup(e.die)
	return e
}

func (e *fakeEngine) Open(r Rule) error {
	if e.wait != nil {
		e.wait(r)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.copies[r.ID]; ok {
		e.t.Errorf("rule %d comes twice", r.ID)
	}
	files := []*os.File{}
	for _, l := range r.Listeners {
		if l.Rule != r.ID {
			e.t.Errorf("a listener of rule %d says %d", r.ID, l.Rule)
		}
		err := bind.Control(l.File, func(fd int) error {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err == nil {
				files = append(files, os.NewFile(uintptr(n), "copy"))
			}
			return err
		})
		if err != nil {
			e.t.Errorf("rule %d: %v", r.ID, err)
		}
	}
	e.copies[r.ID] = files
	return e.refuse
}

func (e *fakeEngine) Shut(id int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.copies[id]; !ok {
		e.t.Errorf("rule %d ends, but was not opened", id)
	}
	e.shut = append(e.shut, id)
	if e.keep {
		return
	}
	for _, f := range e.copies[id] {
		f.Close()
	}
	delete(e.copies, id)
}

// die closes every copy, as the kernel does for a process.
func (e *fakeEngine) die() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, files := range e.copies {
		for _, f := range files {
			f.Close()
		}
		delete(e.copies, id)
	}
}

func newRegistry(t testing.TB, cfg Config) *Registry {
	t.Helper()
	r := New(cfg)
	t.Cleanup(r.Close)
	return r
}

func add(t testing.TB, r *Registry, text string) Rule {
	t.Helper()
	rule, err := r.Add(parse(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return rule
}

// refused checks that a rule cannot be added and that nothing is left of it.
func refused(t *testing.T, r *Registry, text string, reason error, words ...string) {
	t.Helper()
	before := len(r.Rules())
	rule, err := r.Add(parse(t, text))
	if err == nil {
		t.Errorf("%s is accepted: %v", text, rule)
		return
	}
	if reason != nil && !errors.Is(err, reason) {
		t.Errorf("%v is not %v", err, reason)
	}
	checkLine(t, err, append(words, parse(t, text).String())...)
	if n := len(r.Rules()); n != before {
		t.Errorf("%d rules, %d before", n, before)
	}
}

// reaches reports whether something listens at a TCP address or unix path.
func reaches(network, where string) bool {
	c, err := net.DialTimeout(network, where, 5*time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// occupy listens at an address like any program does.
func occupy(t testing.TB, network, addr string) {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// bounds are the addresses of a rule's listeners.
func bounds(r Rule) (all []netip.AddrPort) {
	for _, l := range r.Listeners {
		all = append(all, l.Bound)
	}
	return all
}

func option(t testing.TB, f *os.File, level, name int) (n int) {
	t.Helper()
	err := bind.Control(f, func(fd int) (err error) {
		n, err = unix.GetsockoptInt(fd, level, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// noLeaks is stacktest's, for tests whose Registry and engine end before they do.
func noLeaks(t testing.TB) { stacktest.NoLeaks(t) }
