package portdriver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/stack/stacktest"
)

func TestRules(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{Backend: newEngine(t)})
	for i, text := range []string{"8080:80", "0.0.0.0:8081:81/udp", "127.0.0.1:8082-8083:82-83"} {
		if rule := add(t, r, text); rule.ID != i+1 || rule.Auto {
			t.Errorf("%s is rule %d, auto %v", text, rule.ID, rule.Auto)
		}
	}
	if err := r.Remove(2); err != nil {
		t.Fatal(err)
	}
	if rule, err := r.AddAuto(parse(t, "0.0.0.0:8081:81/udp")); err != nil || rule.ID != 4 || !rule.Auto {
		t.Errorf("rule %d, auto %v, %v, want a new ID", rule.ID, rule.Auto, err)
	}
	var ids []int
	for _, rule := range r.Rules() {
		ids = append(ids, rule.ID)
		if got, err := r.Get(rule.ID); err != nil || got.String() != rule.String() {
			t.Errorf("rule %d is %v, %v", rule.ID, got, err)
		}
	}
	if !slices.Equal(ids, []int{1, 3, 4}) {
		t.Errorf("rules %v", ids)
	}
	for _, id := range []int{0, -1, 2, 5} {
		if err := r.Remove(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("remove %d: %v", id, err)
		}
		if _, err := r.Get(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("get %d: %v", id, err)
		}
	}
}

func TestAddConflict(t *testing.T) {
	r := newRegistry(t, Config{})
	add(t, r, "0.0.0.0:8080:80")
	refused(t, r, "127.0.0.1:8080:81", ErrConflict, "rule 1 (0.0.0.0:8080:80/tcp)")
	refused(t, r, "8080:81/tcp4", ErrConflict, "rule 1")
	refused(t, r, "8000-8100:1-101", ErrConflict, "rule 1")
	add(t, r, "[::]:8080:80")
	refused(t, r, "8080:81/tcp6", ErrConflict, "rule 2 ([::]:8080:80/tcp)")
	refused(t, r, "8080:81", ErrConflict, "rule 1")
	add(t, r, "8080:81/udp")
}

// TestAddForeign: a port that another process has is a conflict too.
func TestAddForeign(t *testing.T) {
	r := newRegistry(t, Config{Backend: newEngine(t)})
	self := fmt.Sprintf("(pid %d)", os.Getpid())
	occupy(t, "tcp", "127.0.0.1:8005")
	occupy(t, "udp", "[::1]:8006")
	refused(t, r, "8005:80", ErrConflict, "tcp 127.0.0.1:8005", "address already in use", "held by", self)
	refused(t, r, "8006:80/udp", ErrConflict, "udp [::1]:8006", self)
	refused(t, r, "0.0.0.0:8005:80", ErrConflict, "0.0.0.0:8005", self)

	// All or nothing, and which port.
	refused(t, r, "8000-8010:80-90", ErrConflict, "127.0.0.1:8005", self)
	for port := 8000; port <= 8010; port++ {
		if port != 8005 && reaches("tcp", fmt.Sprintf("127.0.0.1:%d", port)) {
			t.Errorf("port %d is left open", port)
		}
	}
	add(t, r, "8000-8004:80-84")
	add(t, r, "8006-8010:80-84")
}

// TestAddRandomRanges adds ranges that collide with each other and with foreign
// ports: each is there as a whole, or not at all.
func TestAddRandomRanges(t *testing.T) {
	noLeaks(t)
	const tries, width, space = 1000, 100, 20000
	rnd := rand.New(rand.NewPCG(1, 2))
	r := newRegistry(t, Config{Backend: newEngine(t)})
	for range 20 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rnd.IntN(space)))
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
	}
	var present []Rule
	refusals := 0
	for i := range tries {
		if len(present) > 40 {
			n := rnd.IntN(len(present))
			if err := r.Remove(present[n].ID); err != nil {
				t.Fatal(err)
			}
			present = slices.Delete(present, n, n+1)
		}
		first := 10000 + rnd.IntN(space-width)
		rule, err := r.Add(Spec{
			Proto: TCP4, Count: width, Container: Side{Port: 1},
			Host: Side{Addr: netip.MustParseAddr("127.0.0.1"), Port: uint16(first)},
		})
		switch {
		case err == nil && len(rule.Listeners) == width:
			present = append(present, rule)
		case errors.Is(err, ErrConflict):
			refusals++
		default:
			t.Fatalf("try %d: %v with %d listeners, %v", i, rule.Spec, len(rule.Listeners), err)
		}
	}
	if refusals < 100 || refusals > tries-100 {
		t.Errorf("%d of %d refused: not much of a test", refusals, tries)
	}
	if n := r.listeners; n != len(present)*width {
		t.Errorf("%d sockets are counted, want %d", n, len(present)*width)
	}
	for i, a := range present {
		for _, b := range present[:i] {
			if Conflict(a.Spec, b.Spec) {
				t.Errorf("%v and %v are both in force", a.Spec, b.Spec)
			}
		}
	}
}

func TestAddSimultaneously(t *testing.T) {
	noLeaks(t)
	for _, spec := range []string{"8080:80", "8080:80/udp", "unix:" + filepath.Join(t.TempDir(), "s") + ":80"} {
		r := New(Config{Backend: newEngine(t)})
		var wins, conflicts atomic.Int32
		var all sync.WaitGroup
		start := make(chan struct{})
		for range 100 {
			all.Go(func() {
				<-start
				switch _, err := r.Add(parse(t, spec)); {
				case err == nil:
					wins.Add(1)
				case errors.Is(err, ErrConflict):
					conflicts.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		close(start)
		all.Wait()
		if wins.Load() != 1 || conflicts.Load() != 99 {
			t.Errorf("%s: %d won, %d conflicts", spec, wins.Load(), conflicts.Load())
		}
		r.Close()
	}
}

// TestChurn adds and removes 10,000 times from several goroutines.
func TestChurn(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{Backend: newEngine(t)})
	keeper := add(t, r, "9999:99")
	dir := t.TempDir()
	specs := []string{
		"8080:80", "8080:80/udp", "127.0.0.1:8090-8099:1-10", "81", "82/udp", "unix:" + filepath.Join(dir, "a") + ":80",
		"0.0.0.0:8070:1", "[::1]:8071:1/udp",
	}
	var all sync.WaitGroup
	var ids sync.Map
	for _, text := range specs {
		spec := parse(t, text)
		all.Go(func() {
			for range 10000 / len(specs) {
				rule, err := r.Add(spec)
				if err == nil {
					if _, again := ids.LoadOrStore(rule.ID, true); again {
						t.Errorf("ID %d was there before", rule.ID)
					}
					err = r.Remove(rule.ID)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if rules := r.Rules(); len(rules) != 1 || rules[0].ID != keeper.ID || len(r.entries) != 1 || r.listeners != 2 {
		t.Errorf("rules %v, %d entries, %d listeners are left", rules, len(r.entries), r.listeners)
	}
	if !reaches("tcp", "127.0.0.1:9999") {
		t.Error("the rule that stays does not listen")
	}
}

func TestAddAll(t *testing.T) {
	r := newRegistry(t, Config{Backend: newEngine(t)})
	rules, err := r.AddAll([]Spec{parse(t, "80"), parse(t, "8080:81"), parse(t, "82/udp")})
	if err != nil {
		t.Fatal(err)
	}
	for i, rule := range rules {
		if rule.ID != i+1 || rule.Spec.Container.Port != uint16(80+i) || rule.Spec.Host.Port == 0 {
			t.Errorf("%d: %d %v", i, rule.ID, rule.Spec)
		}
	}
	// None if one fails, whichever it is.
	occupy(t, "tcp", "127.0.0.1:8083")
	for _, specs := range [][]string{
		{"8081:1", "8082:2", "8080:3"}, {"8081:1", "8082:2", "8081:3"}, {"8083:1", "8081:2"}, {"8081:1", "8083:2"},
	} {
		var all []Spec
		for _, text := range specs {
			all = append(all, parse(t, text))
		}
		if _, err := r.AddAll(all); !errors.Is(err, ErrConflict) {
			t.Errorf("%v: %v", specs, err)
		}
		if n := len(r.entries); n != 3 || reaches("tcp", "127.0.0.1:8081") {
			t.Errorf("%v: %d entries, or 8081 is open", specs, n)
		}
	}
	// What is asked for by number is not given away as any free port.
	var all []Spec
	for range 50 {
		all = append(all, parse(t, "80"))
	}
	first, last := ephemeral(t)
	for p := first; p < last; p += 500 {
		all = append(all, parse(t, fmt.Sprintf("%d:80", p)))
	}
	if _, err := r.AddAll(all); err != nil {
		t.Error(err)
	}
}

// ephemeral is the range of which the kernel takes free ports.
func ephemeral(t *testing.T) (first, last int) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(b), &first, &last)
	}
	if err != nil {
		t.Fatal(err)
	}
	return first, last
}

// TestBackendRefuses: what the engine does not serve is not published.
func TestBackendRefuses(t *testing.T) {
	noLeaks(t)
	engine := newEngine(t)
	r := newRegistry(t, Config{Backend: engine})
	engine.refuse = errors.New("no more")
	name := filepath.Join(t.TempDir(), "s")
	for _, text := range []string{"8080:80", "8080:80/udp", "unix:" + name + ":80"} {
		refused(t, r, text, engine.refuse, "no more")
	}
	if len(engine.shut) != 3 || len(engine.copies) != 0 || len(r.entries) != 0 || r.listeners != 0 {
		t.Errorf("shut %v, entries %v, %d listeners", engine.shut, r.entries, r.listeners)
	}
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is left: %v", err)
	}
	engine.refuse = nil
	add(t, r, "8080:80")
}

// TestBackendSlow: a rule that is on its way is reserved, and holds up nobody.
func TestBackendSlow(t *testing.T) {
	engine := newEngine(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	engine.wait = func(rule Rule) {
		if rule.ID == 1 {
			close(entered)
			<-leave
		}
	}
	r := newRegistry(t, Config{Backend: engine})
	done := make(chan error)
	go func() {
		_, err := r.Add(parse(t, "8080:80"))
		done <- err
	}()
	<-entered
	refused(t, r, "127.0.0.1:8080:81", ErrConflict, "rule 1 (8080:80/tcp), which is about to be in force")
	if err := r.Remove(1); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove: %v", err)
	}
	add(t, r, "8081:80")
	if rules := r.Rules(); len(rules) != 1 {
		t.Errorf("rules %v", rules)
	}
	closed := make(chan struct{})
	go func() {
		r.Close()
		close(closed)
	}()
	stacktest.Eventually(t, "the registry closes", func() bool {
		_, err := r.Add(parse(t, "8082:80"))
		return errors.Is(err, ErrClosed)
	})
	select {
	case <-closed:
		t.Error("Close does not wait")
	case <-time.After(20 * time.Millisecond):
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-closed
	if reaches("tcp", "127.0.0.1:8080") {
		t.Error("the listener is left")
	}
}

// TestRemoveAtOnce: the engine's copies do not keep a port, even when it hangs.
func TestRemoveAtOnce(t *testing.T) {
	engine := newEngine(t)
	engine.keep = true
	r := newRegistry(t, Config{Backend: engine})
	name := filepath.Join(t.TempDir(), "s")
	for range 3 {
		for _, text := range []string{"8080:80", "0.0.0.0:8081:80", "8082:80/udp", "unix:" + name + ":80"} {
			rule := add(t, r, text)
			l := rule.Listeners[0]
			where := l.Bound.String()
			if l.Network == NetUnix {
				where = name
			}
			if l.Network != NetUDP && !reaches(string(l.Network), where) {
				t.Errorf("%s does not listen", text)
			}
			if l.Network == NetUDP {
				checkReceives(t, l)
			}
			if err := r.Remove(rule.ID); err != nil {
				t.Fatal(err)
			}
			if l.Network != NetUDP && reaches(string(l.Network), where) {
				t.Errorf("%s listens after its end", text)
			}
		}
	}
	// Nobody else may bind beside a new socket.
	add(t, r, "8082:80/udp")
	refused(t, r, "8082:80/udp", ErrConflict)
	for _, l := range r.Rules()[0].Listeners {
		if option(t, l.File, 1, 2) != 0 { // SOL_SOCKET, SO_REUSEADDR
			t.Errorf("%v may be shared", l.Bound)
		}
	}
}

func TestLimits(t *testing.T) {
	r := newRegistry(t, Config{})
	refused(t, r, "1-20000:1-20000", ErrLimit, "32768")
	for i := range MaxRules {
		r.entries[-1-i] = &entry{state: opening}
	}
	refused(t, r, "8080:80", ErrLimit, "16384 rules")
	clear(r.entries)
	add(t, r, "8080:80")
}

func TestClose(t *testing.T) {
	noLeaks(t)
	engine := newEngine(t)
	r := New(Config{Backend: engine})
	name := filepath.Join(t.TempDir(), "s")
	for _, text := range []string{"8080:80", "8081:80/udp", "unix:" + name + ":80"} {
		add(t, r, text)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(r.Close)
	}
	all.Wait()
	if reaches("tcp", "127.0.0.1:8080") || reaches("tcp", "[::1]:8080") {
		t.Error("a listener is left")
	}
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is left: %v", err)
	}
	if _, err := r.Add(parse(t, "8080:80")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := r.Remove(1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if rules := r.Rules(); len(rules) != 0 {
		t.Error(rules)
	}
	if len(engine.shut) != 0 {
		t.Errorf("the engine is told of %v", engine.shut)
	}
}

// TestThousand adds as many ports as the issue asks for. Its time is for the reader.
func TestThousand(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{Backend: newEngine(t)})
	start := time.Now()
	for i := range 1000 {
		add(t, r, fmt.Sprintf("%d:80", 10000+i))
	}
	t.Logf("1,000 ports, each on two addresses, in %v", time.Since(start))
	start = time.Now()
	for _, rule := range r.Rules() {
		if err := r.Remove(rule.ID); err != nil {
			t.Error(err)
		}
	}
	t.Logf("removed in %v", time.Since(start))
}

// TestRulesAreCopies: what a caller does to a rule changes nothing.
func TestRulesAreCopies(t *testing.T) {
	r := newRegistry(t, Config{})
	want := add(t, r, "8080:80").String()
	rules := r.Rules()
	rules[0].Listeners[0].Bound = netip.AddrPort{}
	rules[0].Spec.Host.Port = 1
	if got, err := r.Get(1); err != nil || cmp.Diff(want, got.String()) != "" {
		t.Errorf("%v is now %v, %v", want, got, err)
	}
}
