package inspect

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// facts is a machine: the caller's network 1 with an engine, a network 2 with a TAP, a
// bridge and a veth pair into network 3.
func facts() *collector {
	uid := uint32(1000)
	c := &collector{
		self:  &raw{pid: 5, uid: 1000, ns: IDs{User: 91, Net: 1, Mount: 81, PID: 71}},
		users: map[uint64]*space{91: {}, 92: {user: 91, owner: &uid, uidMap: []string{"0 1000 1"}}},
		nets: map[uint64]*space{1: {user: 91, member: 5}, 2: {user: 92, member: 11}, 3: {user: 92, member: 20},
			4: {err: errors.New("it is not yours")}, 6: {user: 92, places: []Place{{PID: 5, FD: 9}}}},
		links: map[uint64][]Interface{
			1: {{Index: 1, Name: "lo", nsid: -1}},
			2: {{Index: 2, Name: "tap0", Kind: "tun", nsid: -1}, {Index: 3, Name: "nerdctl0", Kind: "bridge", nsid: -1},
				{Index: 10, Name: "veth1", Kind: "veth", link: 2, nsid: 0, master: 3}, {Index: 11, Name: "v0", Kind: "veth", link: 12, nsid: -1},
				{Index: 12, Name: "v1", Kind: "veth", link: 11, nsid: -1}, {Index: 13, Name: "lost", Kind: "veth", link: 77, nsid: 5},
				{Index: 14, Name: "vlan", Kind: "vlan", link: 3, nsid: -1}},
			3: {{Index: 2, Name: "eth0", Kind: "veth", link: 10, nsid: 0}, {Index: 3, Name: "tap0", Kind: "veth", link: 1, nsid: 4}},
			6: {{Index: 1, Name: "far", Kind: "veth", link: 3, nsid: 0}},
		},
		peers:  map[uint64]map[int]uint64{2: {0: 3}, 3: {0: 2, 4: 6}, 6: {0: 3}},
		procs:  map[int]*raw{},
		tuns:   []holder{{pid: 12, name: "tap0"}, {pid: 5, name: "tap0", net: 2}},
		names:  map[uint64][]string{3: {"instance a"}},
		helped: map[uint64]int{3: 5},
	}
	for _, p := range []*raw{c.self, proc(11, 1, 2, "sh", ""), proc(12, 5, 1, "slirp4netns 11 tap0", ""), proc(20, 11, 3, "nginx", ""),
		{pid: 30, denied: true, stat: stat{comm: "init"}}} {
		c.procs[p.pid] = p
	}
	recognise(c.procs, map[int]Owner{20: {Runtime: "nerdctl", ID: "x", Name: "web"}})
	return c
}

func TestBuild(t *testing.T) {
	r := facts().build()
	peers := make(map[string]Peer)
	engines := make(map[string]Engine)
	for _, n := range r.Networks {
		for _, l := range n.Interfaces {
			if l.Peer != nil {
				peers[l.Name+string('0'+rune(n.ID))] = *l.Peer
			}
			if l.Engine != nil {
				engines[l.Name+string('0'+rune(n.ID))] = *l.Engine
			}
		}
	}
	if d := cmp.Diff(map[string]Peer{
		"veth12": {3, 2, "eth0"}, "eth03": {2, 10, "veth1"}, "v02": {2, 12, "v1"}, "v12": {2, 11, "v0"},
		"lost2": {0, 77, ""}, "vlan2": {2, 3, "nerdctl0"}, "tap03": {6, 1, "far"}, "far6": {3, 3, "tap0"},
	}, peers); d != "" {
		t.Error("peers:", d)
	}
	if d := cmp.Diff(map[string]Engine{"tap02": {"slirp4netns", 12, 1}, "tap03": {"slirp4netns", 12, 1}}, engines); d != "" {
		t.Error("engines:", d)
	}
	if got := r.Network(2).Interfaces[2].Bridge; got != "nerdctl0" {
		t.Errorf("veth1 is a port of %q", got)
	}
	if got := r.Network(4).Problem; got != "it is not yours" {
		t.Errorf("problem: %q", got)
	}
	if d := cmp.Diff([]string{"instance a", "nerdctl container web"}, r.Network(3).Names); d != "" {
		t.Error("names:", d)
	}
	if r.Unreadable != 1 || r.Process(30) != nil {
		t.Errorf("process 30, which may not be read: unreadable %d", r.Unreadable)
	}
}

// TestNestedInInstance: a network that an instance's programs made is not the
// instance's own.
func TestNestedInInstance(t *testing.T) {
	c := facts()
	c.procs[21] = proc(21, 1, 2, "sh", "")
	c.procs[22] = proc(22, 1, 3, "sh", "")
	for _, pid := range []int{21, 22} {
		c.procs[pid].owner = &Owner{Runtime: "postern", Name: "a"}
	}
	r := c.build()
	if d := cmp.Diff([]string{"within instance a"}, r.Network(2).Names); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"instance a", "nerdctl container web"}, r.Network(3).Names); d != "" {
		t.Error(d)
	}
}

func TestConnected(t *testing.T) {
	r := facts().build()
	if d := cmp.Diff(map[uint64]bool{2: true, 3: true, 6: true}, r.Connected(3)); d != "" {
		t.Error(d)
	}
	part := r.Only(r.Connected(3), nil)
	if len(part.Networks) != 3 || len(part.Users) != 2 || part.Process(5) != nil || part.Process(20) == nil {
		t.Errorf("only: %+v", part)
	}
}

// TestCollectOurselves compares what is found about this process with /proc.
func TestCollectOurselves(t *testing.T) {
	r, err := Collect(context.Background(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := r.Process(os.Getpid())
	if p == nil {
		t.Fatal("our own process is missing")
	}
	for kind, id := range map[string]uint64{"user": p.NS.User, "net": p.NS.Net, "mnt": p.NS.Mount, "pid": p.NS.PID} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := nsID(kind, link); id != want {
			t.Errorf("%s namespace %d, want %s", kind, id, link)
		}
	}
	n := r.Network(p.NS.Net)
	if n == nil || n.Problem != "" || !strings.Contains(p.Command, "inspect.test") {
		t.Fatalf("our network %+v, command %q", n, p.Command)
	}
	lo := find(n.Interfaces, func(l *Interface) bool { return l.Name == "lo" })
	if lo == nil || lo.Index != 1 {
		t.Errorf("lo: %+v", lo)
	}
	again, err := Collect(context.Background(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r.Network(p.NS.Net).ID, again.Network(p.NS.Net).ID, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

func TestCollectEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Collect(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
