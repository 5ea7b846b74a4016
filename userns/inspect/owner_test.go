package inspect

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// proc is a process of a table.
func proc(pid, parent int, pidns uint64, cmdline, cgroup string) *raw {
	return &raw{pid: pid, stat: stat{comm: "x", parent: parent}, words: strings.Fields(cmdline), cgroup: cgroup,
		ns: IDs{User: 1, Net: pidns, Mount: pidns, PID: pidns}}
}

func TestRecognise(t *testing.T) {
	const digest = "d8e2d622b3d70000000000000000000000000000000000000000000000000000"
	const slice = "0::/user.slice/user-1000.slice/user@1000.service/user.slice/"
	for name, tc := range map[string]struct {
		procs []*raw
		known map[int]Owner
		want  map[int]string // "" is nobody
	}{
		"RootlessKit, its child and slirp4netns": {
			[]*raw{
				proc(10, 1, 1, "rootlesskit --state-dir=/run/user/1000/containerd-rootless --net=slirp4netns sh", ""),
				proc(11, 10, 2, "/proc/self/exe --state-dir=/run/user/1000/containerd-rootless sh", ""),
				proc(12, 10, 1, "slirp4netns --mtu 65520 -r 3 11 tap0", ""),
				proc(13, 11, 2, "containerd", ""),
			}, nil,
			map[int]string{10: "rootlesskit parent /run/user/1000/containerd-rootless",
				11: "rootlesskit child /run/user/1000/containerd-rootless", 12: "slirp4netns engine", 13: ""},
		},
		"RootlessKit with our slirp4netns": {
			[]*raw{
				proc(10, 1, 1, "rootlesskit --state-dir=/run/user/1000/kit --net=slirp4netns sh", ""),
				proc(11, 10, 2, "/proc/self/exe --state-dir=/run/user/1000/kit sh", ""),
				proc(12, 10, 1, "slirp4netns --mtu 65520 -r 3 11 tap0", ""),
				proc(13, 12, 1, "postern-engine", ""),
				proc(14, 11, 2, "containerd", ""),
			},
			map[int]Owner{12: {Runtime: "postern", ID: "a", Name: "a", Role: "supervisor"}, 11: {Runtime: "postern", ID: "a", Name: "a"}},
			map[int]string{10: "rootlesskit parent /run/user/1000/kit", 11: "rootlesskit child /run/user/1000/kit",
				12: "postern supervisor a", 13: "postern engine", 14: ""},
		},
		"we in RootlessKit's place": {
			[]*raw{
				proc(10, 1, 1, "/home/x/bin/rootlesskit --state-dir=/run/user/1000/kit --net=slirp4netns sh", ""),
				proc(11, 10, 1, "postern-engine", ""), proc(12, 10, 2, "postern-agent sh", ""), proc(13, 12, 2, "containerd", ""),
			}, nil,
			map[int]string{10: "rootlesskit parent /run/user/1000/kit", 11: "postern engine", 12: "rootlesskit child /run/user/1000/kit", 13: ""},
		},
		"nerdctl, by cgroup, its name from the bundle": {
			[]*raw{proc(20, 1, 3, "nginx: master process", slice+"nerdctl-"+digest+".scope\n"), proc(21, 20, 3, "nginx: worker", slice+"nerdctl-"+digest+".scope\n")},
			map[int]Owner{20: {Runtime: "nerdctl", ID: digest, Name: "web"}},
			map[int]string{20: "nerdctl container web", 21: "nerdctl container web"},
		},
		"podman, the name from conmon": {
			[]*raw{proc(30, 1, 1, "/usr/bin/conmon --api-version 1 -c "+digest+" -u x -r /usr/bin/crun -n blue_fox", slice+"libpod-conmon-"+digest+".scope"),
				proc(31, 30, 4, "redis-server", slice+"libpod-"+digest+".scope\n"), proc(32, 31, 4, "sh", "2:cpu:/\n"+slice+"libpod-"+digest+".scope/container\n")}, nil,
			map[int]string{30: "podman monitor blue_fox", 31: "podman container blue_fox", 32: "podman container blue_fox"},
		},
		"runc with a state file and a child": {
			[]*raw{proc(40, 1, 5, "valkey-server", "0::/"), proc(41, 40, 5, "sh", "0::/"), proc(42, 41, 6, "elsewhere", "0::/")},
			map[int]Owner{40: {Runtime: "runc", ID: "one"}},
			map[int]string{40: "runc container one", 41: "runc container one", 42: ""},
		},
		"ours": {
			[]*raw{proc(50, 1, 1, "postern run", ""), proc(51, 50, 1, "postern-engine", ""), proc(52, 50, 7, "postern-agent sh", ""), proc(53, 1, 8, "postern-netns web", "")},
			map[int]Owner{50: {Runtime: "postern", ID: "a", Name: "a", Role: "supervisor"}, 52: {Runtime: "postern", ID: "a", Name: "a"}},
			map[int]string{50: "postern supervisor a", 51: "postern engine", 52: "instance a", 53: "postern keeper of netns web"},
		},
		"a loop of parents": {
			[]*raw{proc(60, 61, 1, "a", ""), proc(61, 60, 1, "b", "")}, nil, map[int]string{60: "", 61: ""},
		},
		"a hostile name": {
			[]*raw{proc(70, 1, 1, "conmon -c \x1b[2J -n x\x07", "")}, nil, map[int]string{70: "podman monitor x?"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			procs := make(map[int]*raw)
			for _, p := range tc.procs {
				procs[p.pid] = p
			}
			recognise(procs, tc.known)
			got := make(map[int]string)
			for pid, p := range procs {
				got[pid] = ""
				if p.owner != nil {
					got[pid] = p.owner.String()
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestStateFiles(t *testing.T) {
	got, err := parseRunc([]byte(`{"id":"one","init_process_pid":40,"init_process_start":4711,"config":{"labels":["x=y","bundle=/b"]}}`))
	if want := (container{runtime: "runc", id: "one", bundle: "/b", pid: 40, start: 4711}); err != nil || got != want {
		t.Errorf("runc: %+v, %v", got, err)
	}
	got, err = parseCrun([]byte(`{"pid":41,"process-start-time":4712,"bundle":"/c"}`))
	if want := (container{runtime: "crun", bundle: "/c", pid: 41, start: 4712}); err != nil || got != want {
		t.Errorf("crun: %+v, %v", got, err)
	}
	if runtime, name := nameIn([]byte(`{"annotations":{"nerdctl/name":"web\u001b"}}`)); runtime != "nerdctl" || name != "web?" {
		t.Errorf("name: %q %q", runtime, name)
	}
	c := &collector{procs: map[int]*raw{40: {pid: 40, stat: stat{start: 1}}}, known: map[int]Owner{}}
	c.container(40, container{runtime: "runc", id: "dead", pid: 40, start: 2})
	c.container(40, container{runtime: "runc", id: "gone", pid: 99})
	if len(c.known) != 0 {
		t.Errorf("another process's state was taken: %v", c.known)
	}
}
