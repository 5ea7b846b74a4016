package auto

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/portdriver"
)

// fake is a registry of rules that can be told which ports are taken.
type fake struct {
	mu    sync.Mutex
	rules []portdriver.Rule
	last  int
	taken map[uint16]bool
	tries int
}

var errTaken = errors.New("address already in use")

func (f *fake) AddAuto(s portdriver.Spec) (portdriver.Rule, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.taken[s.Host.Port] {
		return portdriver.Rule{}, fmt.Errorf("publish %d: %w", s.Host.Port, errTaken)
	}
	for _, r := range f.rules {
		if r.Spec.Host.Port == s.Host.Port && r.Spec.Proto[:3] == s.Proto[:3] && (r.Spec.Proto.Family() == s.Proto.Family() || r.Spec.Proto.Family()*s.Proto.Family() == 0) {
			return portdriver.Rule{}, portdriver.ErrConflict
		}
	}
	f.last++
	r := portdriver.Rule{ID: f.last, Spec: s, Auto: true}
	f.rules = append(f.rules, r)
	return r, nil
}

func (f *fake) Remove(id int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, r := range f.rules {
		if r.ID == id {
			f.rules = slices.Delete(f.rules, i, i+1)
			return nil
		}
	}
	return fmt.Errorf("rule %d: %w", id, portdriver.ErrNotFound)
}

func (f *fake) Rules() []portdriver.Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rules)
}

func (f *fake) take(port uint16, taken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken[port] = taken
}

// specs are the rules in force in few letters.
func (f *fake) specs() (list []string) {
	for _, r := range f.Rules() {
		list = append(list, short([]portdriver.Spec{r.Spec})...)
	}
	slices.Sort(list)
	return list
}

// following runs a test with a Follower in a bubble whose time is the test's own.
func following(t *testing.T, test func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := &fake{taken: make(map[uint16]bool)}
		f := New(Config{Policy: Policy{Addresses: addresses}, Registry: r, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		defer f.Close()
		test(t, f, r, &log)
	})
}

func wantRules(t *testing.T, r *fake, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, r.specs()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestRulesFollowListeners(t *testing.T) {
	following(t, func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer) {
		f.Update(tcp("0.0.0.0:80", "127.0.0.1:81"))
		wantRules(t, r, "tcp 80 own 80", "tcp 81 127.0.0.1 81")
		first := r.Rules()[0].ID
		// The port's target changes: the old rule goes before the new ones come.
		f.Update(tcp("0.0.0.0:80", "127.0.0.1:81", "[::1]:81"))
		wantRules(t, r, "tcp 80 own 80", "tcp4 81 127.0.0.1 81", "tcp6 81 ::1 81")
		if r.Rules()[0].ID != first {
			t.Error("a rule was made anew though its listener stayed")
		}
		if got := f.Status(); got != (Status{Published: 3}) {
			t.Errorf("%+v", got)
		}
		f.Update(nil)
		wantRules(t, r)
		if log.Len() != 0 {
			t.Errorf("said: %s", log)
		}
	})
}

func TestConflictIsSaidOnceAndTriedAgain(t *testing.T) {
	following(t, func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer) {
		r.take(80, true)
		f.Update(tcp("0.0.0.0:80", "0.0.0.0:81"))
		wantRules(t, r, "tcp 81 own 81")
		if got := f.Status(); got != (Status{Published: 1, Failed: 1}) {
			t.Errorf("%+v", got)
		}
		time.Sleep(10 * time.Minute)
		f.Check() // no reason to try earlier
		synctest.Wait()
		// 1, 2, 4, 8, 16, then every 30 seconds; one for port 81.
		if tries := r.tries; tries < 20 || tries > 28 {
			t.Errorf("%d tries in 10 minutes", tries)
		}
		if n := strings.Count(log.String(), errTaken.Error()); n != 1 || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("said %d times: %s", n, log)
		}
		r.take(80, false)
		time.Sleep(lastRetry)
		wantRules(t, r, "tcp 80 own 80", "tcp 81 own 81")
		// The next conflict is said again, and forgotten with its listener.
		r.take(82, true)
		f.Update(tcp("0.0.0.0:82"))
		wantRules(t, r)
		if n := strings.Count(log.String(), errTaken.Error()); n != 2 {
			t.Errorf("said %d times: %s", n, log)
		}
		f.Update(nil)
		synctest.Wait()
		tries := r.tries
		time.Sleep(time.Hour)
		if r.tries != tries || f.Status() != (Status{}) {
			t.Errorf("%d more tries, %+v", r.tries-tries, f.Status())
		}
	})
}

func TestRuleRemovedByHandStaysRemoved(t *testing.T) {
	following(t, func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer) {
		f.Update(tcp("0.0.0.0:80", "0.0.0.0:81"))
		synctest.Wait()
		for _, rule := range r.Rules() {
			if rule.Spec.Host.Port == 80 {
				r.Remove(rule.ID)
			}
		}
		f.Check()
		wantRules(t, r, "tcp 81 own 81")
		time.Sleep(time.Hour)
		f.Update(tcp("0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:82"))
		wantRules(t, r, "tcp 81 own 81", "tcp 82 own 82")
		f.Update(tcp("0.0.0.0:81", "0.0.0.0:82"))
		wantRules(t, r, "tcp 81 own 81", "tcp 82 own 82")
		f.Update(tcp("0.0.0.0:80"))
		wantRules(t, r, "tcp 80 own 80")
	})
}

// A rule that the user adds for the same port of the container takes its place.
func TestExplicitRuleWins(t *testing.T) {
	following(t, func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer) {
		f.Update(tcp("0.0.0.0:80"))
		wantRules(t, r, "tcp 80 own 80")
		s, err := portdriver.ParseSpec("8080:80")
		if err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		r.rules = append(r.rules, portdriver.Rule{ID: 1000, Spec: s})
		r.mu.Unlock()
		f.Check()
		wantRules(t, r, "tcp 8080 own 80")
		if err := r.Remove(1000); err != nil {
			t.Fatal(err)
		}
		f.Check()
		wantRules(t, r, "tcp 80 own 80")
	})
}

func TestTooManyListenersAreSaidOnce(t *testing.T) {
	following(t, func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer) {
		many := tcp()
		for port := range uint16(MaxRules + 9) {
			many = append(many, tcp(netip.AddrPortFrom(netip.IPv4Unspecified(), port+1).String())...)
		}
		for range 3 {
			f.Update(many)
			synctest.Wait()
		}
		if got := f.Status(); got != (Status{Published: MaxRules, More: 9}) {
			t.Errorf("%+v", got)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines: %s", n, log)
		}
	})
}

func TestCloseKeepsRules(t *testing.T) {
	following(t, func(t *testing.T, f *Follower, r *fake, log *bytes.Buffer) {
		f.Update(tcp("0.0.0.0:80"))
		synctest.Wait()
		f.Close()
		f.Close()
		f.Update(nil)
		wantRules(t, r, "tcp 80 own 80")
	})
}
