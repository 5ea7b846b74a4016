package spawn

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns"
	"github.com/postern-net/postern/userns/subid"
)

// able is an ordinary user with everything in place.
func able() facts {
	return facts{
		uid: 1000, gid: 100, user: "alice",
		ranges: subid.Ranges{
			UID: []subid.Range{{Start: 100000, Count: 65536}},
			GID: []subid.Range{{Start: 200000, Count: 65536}},
		},
		uidTool: tool{name: "newuidmap", path: "/usr/bin/newuidmap"},
		gidTool: tool{name: "newgidmap", path: "/usr/bin/newgidmap"},
	}
}

// root is uid 0 with all capabilities in the initial user namespace.
func root() facts {
	everything := userns.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}}
	return facts{user: "root", privileged: true, outerUID: everything, outerGID: everything}
}

func TestPlanFull(t *testing.T) {
	got, err := plan(Auto, able())
	if err != nil {
		t.Fatal(err)
	}
	want := IDMaps{
		UID:       userns.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}},
		GID:       userns.Map{{Inside: 0, Outside: 100, Count: 1}, {Inside: 1, Outside: 200000, Count: 65536}},
		Fallback:  true,
		NewUIDMap: "/usr/bin/newuidmap", NewGIDMap: "/usr/bin/newgidmap",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPlanObstacles(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*facts)
		want   []string // in the notice
	}{
		{"no newuidmap", func(f *facts) { f.uidTool.path = "" }, []string{"newuidmap: not found", "uidmap"}},
		{"no newgidmap", func(f *facts) { f.gidTool.path = "" }, []string{"newgidmap: not found"}},
		{"not setuid", func(f *facts) { f.uidTool.weak = true }, []string{"/usr/bin/newuidmap", "chmod u+s /usr/bin/newuidmap"}},
		{"no_new_privs", func(f *facts) { f.noNewPrivs = true }, []string{"no_new_privs"}},
		{"no subuid", func(f *facts) { f.ranges.UID = nil }, []string{"alice", "/etc/subuid", "usermod --add-subuids"}},
		{"no subgid", func(f *facts) { f.ranges.GID = nil }, []string{"alice", "/etc/subgid", "usermod --add-subgids"}},
		{"getsubids knows nobody", func(f *facts) {
			f.ranges.UID, f.from = nil, subid.Dynamic
		}, []string{"alice", "getsubids", "--subid-source=static"}},
		{"getsubids failed", func(f *facts) { f.rangesErr = errors.New("sssd is down") }, []string{"sssd is down"}},
		{"overlapping ranges", func(f *facts) {
			f.ranges.UID = append(f.ranges.UID, subid.Range{Start: 100001, Count: 1})
		}, []string{"overlap", "alice"}},
	} {
		f := able()
		tc.change(&f)
		got, err := plan(Auto, f)
		if err != nil || !got.Single || got.Fallback {
			t.Errorf("%s: auto gave %+v, %v", tc.name, got, err)
		}
		for _, part := range append(tc.want, "--map=single") {
			if !strings.Contains(got.Notice, part) {
				t.Errorf("%s: notice %q lacks %q", tc.name, got.Notice, part)
			}
		}
		if strings.Contains(got.Notice, "\n") {
			t.Errorf("%s: notice has more than one line: %q", tc.name, got.Notice)
		}
		if _, err := plan(Subid, f); !errors.Is(err, ErrMapping) {
			t.Errorf("%s: subid gave %v, want ErrMapping", tc.name, err)
		}
		if got, err := plan(Single, f); err != nil || got.Notice != "" || !got.Single {
			t.Errorf("%s: single gave %+v, %v", tc.name, got, err)
		}
	}
}

func TestPlanPrivileged(t *testing.T) {
	everything := userns.Map{{Inside: 0, Outside: 0, Count: 1<<32 - 1}}
	ranges := able().ranges
	nested := userns.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}
	for _, tc := range []struct {
		name   string
		change func(*facts)
		want   userns.Map // of uids
		single bool
		direct bool
	}{
		{"root without ranges keeps all ids", func(*facts) {}, everything, false, true},
		{"root in a container keeps the container's", func(f *facts) { f.outerUID = nested },
			userns.Map{{Inside: 0, Outside: 0, Count: 1}, {Inside: 1, Outside: 1, Count: 65536}}, false, true},
		{"root with ranges uses them", func(f *facts) { f.ranges = ranges },
			userns.Map{{Inside: 0, Outside: 0, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}, false, true},
		{"a user with CAP_SETUID needs no newuidmap", func(f *facts) { *f = able(); f.privileged = true; f.uidTool.path = "" },
			userns.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}, false, true},
		{"a user with CAP_SETUID does not become the host's root", func(f *facts) { f.uid, f.gid = 1000, 100 },
			userns.SingleMap(1000), true, false},
		{"root without capabilities is a user", func(f *facts) { f.privileged = false }, userns.SingleMap(0), true, false},
	} {
		f := root()
		tc.change(&f)
		got, err := plan(Auto, f)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, got.UID); diff != "" || got.Single != tc.single || got.Direct != tc.direct {
			t.Errorf("%s: %+v\n%s", tc.name, got, diff)
		}
	}
}

func TestExplain(t *testing.T) {
	open := kernelFacts{apparmorRestrict: -1, usernsClone: -1, uid: 1000}
	with := func(change func(*kernelFacts)) kernelFacts {
		f := open
		change(&f)
		return f
	}
	for _, tc := range []struct {
		errno unix.Errno
		facts kernelFacts
		want  string
	}{
		{unix.EPERM, with(func(f *kernelFacts) { f.apparmorRestrict = 1 }), "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{unix.EACCES, with(func(f *kernelFacts) { f.apparmorRestrict = 1 }), "userns,"},
		{unix.EPERM, with(func(f *kernelFacts) { f.usernsClone = 0 }), "sysctl -w kernel.unprivileged_userns_clone=1"},
		{unix.EPERM, with(func(f *kernelFacts) { f.usernsClone = 1; f.seccomp = 2 }), "seccomp"},
		{unix.EPERM, with(func(f *kernelFacts) { f.usernsClone = 0; f.uid = 0; f.seccomp = 2 }), "seccomp"},
		{unix.EPERM, open, "chroot"},
		{unix.ENOSPC, with(func(f *kernelFacts) { f.limits = map[string]int{"max_user_namespaces": 0} }), "sysctl -w user.max_user_namespaces=28633"},
		{unix.ENOSPC, with(func(f *kernelFacts) {
			f.limits = map[string]int{"max_user_namespaces": 100, "max_net_namespaces": 0}
		}), "sysctl -w user.max_net_namespaces=28633"},
		{unix.EUSERS, open, "nested"},
		{unix.ENOSPC, open, "too many namespaces"},
		{unix.EINVAL, open, "CONFIG_USER_NS"},
		{unix.ENOSYS, open, "seccomp"},
		{unix.EAGAIN, open, "ulimit -u"},
	} {
		got := explain(tc.errno, tc.facts)
		if !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
			t.Errorf("explain(%v, %+v) = %q, want %q in it", tc.errno, tc.facts, got, tc.want)
		}
	}
	if got := explain(unix.EIO, open); got != "" {
		t.Errorf("explain(EIO) = %q", got)
	}
}
