package inspectview

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/userns/inspect"
)

// report is rootless containerd: its detached network with a TAP and a bridge, and a
// container behind a veth pair.
func report() *inspect.Report {
	uid := uint32(1000)
	addr := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	return &inspect.Report{
		Version: inspect.Version, UID: 1000, Self: inspect.IDs{User: 1, Net: 2, Mount: 3, PID: 4}, Unreadable: 7,
		Users: []inspect.User{{ID: 1}, {ID: 11, Parent: 1, Owner: &uid, UIDMap: []string{"0 1000 1", "1 100000 65536"}}},
		Networks: []inspect.Network{
			{ID: 2, User: 1, Interfaces: []inspect.Interface{{Index: 1, Name: "lo", Up: true, Addresses: addr("127.0.0.1/8")}}},
			{ID: 12, User: 11, Names: []string{"RootlessKit /run/k"},
				Places: []inspect.Place{{PID: 21, Path: "/run/k/netns"}},
				Ports:  []inspect.Port{{Rule: "127.0.0.1:8080 -> 80/tcp", By: "rootlesskit"}},
				Interfaces: []inspect.Interface{
					{Index: 2, Name: "tap0", Kind: "tun", Up: true, Addresses: addr("10.0.2.100/24"), Engine: &inspect.Engine{Kind: "slirp4netns", PID: 22, Net: 2}},
					{Index: 5, Name: "nerdctl0", Kind: "bridge", Up: true, Addresses: addr("10.4.0.1/24")},
					{Index: 10, Name: "vetha", Kind: "veth", Up: true, Bridge: "nerdctl0", Addresses: addr("fe80::1/64"), Peer: &inspect.Peer{Net: 13, Index: 2, Name: "eth0"}},
				}},
			{ID: 13, User: 11, Names: []string{"nerdctl container web"}, Interfaces: []inspect.Interface{
				{Index: 2, Name: "eth0", Kind: "veth", Up: true, Addresses: addr("10.4.0.9/24"), Peer: &inspect.Peer{Net: 12, Index: 10, Name: "vetha"}}}},
			{ID: 14, Interfaces: []inspect.Interface{}, Problem: "its user namespace is uid 0's, you are uid 1000"},
		},
		Processes: []inspect.Process{
			{PID: 20, UID: 1000, Command: "rootlesskit sh", NS: inspect.IDs{User: 1, Net: 2, Mount: 3, PID: 4}, Owner: &inspect.Owner{Runtime: "rootlesskit", Role: "parent"}},
			{PID: 21, UID: 1000, Command: "/proc/self/exe sh", NS: inspect.IDs{User: 11, Net: 2, Mount: 31, PID: 4}, Owner: &inspect.Owner{Runtime: "rootlesskit", Role: "child"}},
			{PID: 40, UID: 100000, Inner: 1, Command: "nginx: master \"x\"", NS: inspect.IDs{User: 11, Net: 13, Mount: 32, PID: 33}, Owner: &inspect.Owner{Runtime: "nerdctl", Name: "web"}},
		},
	}
}

const wantTree = `user 1  yours, the outermost that you may see
  net 2  yours
    lo 127.0.0.1/8
    mnt 3 pid 4
      20 rootlesskit sh  [rootlesskit parent]
  user 11  of uid 1000, ids 0=1000 1..65536=100000..165535
    net 12  RootlessKit /run/k
      tap0 tun 10.0.2.100/24, served by slirp4netns, process 22 in net 2 (yours)
      nerdctl0 bridge 10.4.0.1/24
      vetha veth, port of nerdctl0 <-> eth0 in net 13 (nerdctl container web)
      published 127.0.0.1:8080 -> 80/tcp (rootlesskit)
      nobody in it
      kept at /run/k/netns, as process 21 sees it
    net 13  nerdctl container web
      eth0 veth 10.4.0.9/24 <-> vetha in net 12 (RootlessKit /run/k)
      mnt 32 pid 33
        40 nginx: master "x"  [nerdctl container web]
    in net 2 (yours)
      mnt 31 pid 4
        21 /proc/self/exe sh  [rootlesskit child]
networks whose owner you may not see
  net 14  [not readable: its user namespace is uid 0's, you are uid 1000]
    nobody in it
7 processes of others, whose namespaces you may not see
`

func TestTree(t *testing.T) {
	var b strings.Builder
	if err := Tree(&b, report(), nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wantTree, b.String()); d != "" {
		t.Error(d)
	}
	b.Reset()
	if err := Tree(&b, report(), map[uint64]bool{13: true}); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.Contains(got, "net 12  ") || !strings.Contains(got, "net 13  ") || strings.Contains(got, "net 14") {
		t.Errorf("restricted to network 13:\n%s", got)
	}
}

const wantFive = `process  40 nginx: master "x" (uid 100000, process 1 in there, nerdctl container web)
user     11  of uid 1000, ids 0=1000 1..65536=100000..165535, below user 1
network  13  nerdctl container web: eth0 10.4.0.9/24
others   mnt 32, pid 33
way out  eth0 <-> vetha in net 12 (RootlessKit /run/k), then tap0, served by slirp4netns, process 22; published 127.0.0.1:8080 -> 80/tcp
`

func TestFive(t *testing.T) {
	r := report()
	for pid, want := range map[int]string{40: wantFive, 21: "it is in your own network"} {
		var b strings.Builder
		if err := Five(&b, r, r.Process(pid)); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); !strings.Contains(got, want) || strings.Count(got, "\n") != 5 {
			t.Errorf("process %d:\n%s\nwant\n%s", pid, got, want)
		}
	}
	// Nothing may be read of it.
	var b strings.Builder
	hidden := &inspect.Process{PID: 9, Command: "x", Problem: "its namespaces may not be read: permission denied"}
	if err := Five(&b, r, hidden); err != nil || strings.Count(b.String(), "not readable") != 4 || strings.Count(b.String(), "\n") != 5 {
		t.Errorf("hidden process: %v\n%s", err, b.String())
	}
}

// TestLoops: peers in a circle and parents in a circle end.
func TestLoops(t *testing.T) {
	r := report()
	r.Networks[1].Interfaces[0].Engine = nil
	r.Users[0].Parent = 11
	r.Users = append(r.Users, inspect.User{ID: 50}, inspect.User{ID: 51, Parent: 50})
	var b strings.Builder
	if err := Five(&b, r, r.Process(40)); err != nil || !strings.Contains(b.String(), "none: no interface leads out") {
		t.Errorf("%v\n%s", err, b.String())
	}
	if err := Tree(&b, r, nil); err != nil {
		t.Error(err)
	}
}

func TestDot(t *testing.T) {
	var b strings.Builder
	if err := Dot(&b, report(), nil); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{
		"subgraph cluster_11 {", `n12 -- n13 [label="vetha <-> eth0"];`, `e22 [shape=ellipse, label="slirp4netns 22"];`,
		"e22 -- n2 [style=dashed];", `nginx: master \"x\"`, `\l`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %s:\n%s", want, got)
		}
	}
	if strings.Count(got, "{") != strings.Count(got, "}") || strings.Count(got, "n12 -- n13") != 1 {
		t.Errorf("braces or a pair twice:\n%s", got)
	}
}

func TestPick(t *testing.T) {
	var list []*inspect.Process
	for i := range 100 {
		p := &inspect.Process{PID: i}
		if i == 90 {
			p.Owner = &inspect.Owner{Runtime: "slirp4netns", Role: "engine"}
		}
		list = append(list, p)
	}
	shown, others := pick(list)
	if len(shown) != maxShown || others != 100-maxShown || shown[0].PID != 90 {
		t.Errorf("%d shown, %d others, first %d", len(shown), others, shown[0].PID)
	}
}
