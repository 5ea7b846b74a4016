package supervisor

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

// shelf is a registry that remembers specs; refuse says why an address is refused.
type shelf struct {
	rules  []portdriver.Rule
	last   int
	refuse map[string]error
}

func (s *shelf) AddAuto(spec portdriver.Spec) (portdriver.Rule, error) {
	if err := s.refuse[spec.Host.Addr.String()]; err != nil {
		return portdriver.Rule{}, fmt.Errorf("listen: %w", err)
	}
	s.last++
	s.rules = append(s.rules, portdriver.Rule{ID: s.last, Spec: spec, Auto: true})
	return s.rules[len(s.rules)-1], nil
}

func (s *shelf) Remove(id int) error {
	n := len(s.rules)
	if s.rules = slices.DeleteFunc(s.rules, func(r portdriver.Rule) bool { return r.ID == id }); len(s.rules) == n {
		return portdriver.ErrNotFound
	}
	return nil
}

func (s *shelf) Rules() []portdriver.Rule { return slices.Clone(s.rules) }

// hosts are the host's addresses of the rules.
func (s *shelf) hosts() (list []string) {
	for _, r := range s.rules {
		list = append(list, r.Spec.Host.Addr.String())
	}
	return list
}

func TestEverywhere(t *testing.T) {
	own := portdriver.Spec{Proto: portdriver.TCP, Count: 1, Host: portdriver.Side{Port: 80}, Container: portdriver.Side{Port: 80}}
	loopback := own
	loopback.Container.Addr = netip.MustParseAddr("127.0.0.1")
	for name, tc := range map[string]struct {
		spec   portdriver.Spec
		refuse map[string]error
		want   []string
		err    error
	}{
		"own address": {spec: own, want: []string{"0.0.0.0", "::"}},
		"loopback":    {spec: loopback, want: []string{"invalid IP"}},
		"no IPv6":     {spec: own, refuse: map[string]error{"::": unix.EAFNOSUPPORT}, want: []string{"0.0.0.0"}},
		"no address":  {spec: own, refuse: map[string]error{"::": unix.EADDRNOTAVAIL}, want: []string{"0.0.0.0"}},
		"taken":       {spec: own, refuse: map[string]error{"0.0.0.0": unix.EADDRINUSE}, err: unix.EADDRINUSE},
		"half taken":  {spec: own, refuse: map[string]error{"::": unix.EADDRINUSE}, err: unix.EADDRINUSE},
	} {
		s := &shelf{refuse: tc.refuse}
		e := &everywhere{Registry: s, v6: netip.IPv6Unspecified(), second: make(map[int]int)}
		rule, err := e.AddAuto(tc.spec)
		if diff := cmp.Diff(tc.want, s.hosts()); diff != "" || !errors.Is(err, tc.err) {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		if err != nil {
			continue
		}
		if err := e.Remove(rule.ID); err != nil || len(s.rules) != 0 || len(e.second) != 0 {
			t.Errorf("%s: removed: %v, left %v %v", name, err, s.hosts(), e.second)
		}
	}
}

// TestEverywhereRemovedByHand: the half of a rule that a user removes.
func TestEverywhereRemovedByHand(t *testing.T) {
	own := portdriver.Spec{Proto: portdriver.TCP, Count: 1, Host: portdriver.Side{Port: 80}, Container: portdriver.Side{Port: 80}}
	s := &shelf{}
	e := &everywhere{Registry: s, v6: netip.IPv6Loopback(), second: make(map[int]int)}
	rule, err := e.AddAuto(own)
	if err != nil || s.Remove(rule.ID) != nil {
		t.Fatal(err)
	}
	if rules := e.Rules(); len(rules) != 0 || len(s.rules) != 0 {
		t.Errorf("without the first: %v, %v", rules, s.hosts())
	}
	if rule, err = e.AddAuto(own); err != nil || s.Remove(rule.ID+1) != nil {
		t.Fatal(err)
	}
	if rules := e.Rules(); len(rules) != 1 {
		t.Errorf("without the second: %v", rules)
	}
	if err := e.Remove(rule.ID); err != nil || len(s.rules) != 0 {
		t.Errorf("removed: %v, left %v", err, s.hosts())
	}
}
