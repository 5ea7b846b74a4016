package spawn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns"
	"github.com/postern-net/postern/userns/internal/usertest"
)

// TestMain lets the test binary be the program in the new namespaces.
func TestMain(m *testing.M) {
	// Otherwise every program of a race-detecting build lingers for a second.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	switch os.Args[0] {
	case "inhabitant":
		os.Exit(inhabit(os.Args[1:]))
	case "parent":
		os.Exit(parent(os.Args[1]))
	}
	os.Exit(m.Run())
}

// inhabit reports what the first inhabitant sees, one line each, and does what
// its arguments say.
func inhabit(args []string) int {
	report := func(name string, err error) { fmt.Printf("%s=%v\n", name, err) }
	for _, arg := range args {
		verb, rest, _ := strings.Cut(arg, ":")
		switch verb {
		case "status":
			b, err := os.ReadFile("/proc/self/status")
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, rest+":") {
					fmt.Printf("%s=%s\n", rest, strings.TrimSpace(strings.TrimPrefix(line, rest+":")))
				}
			}
			if err != nil {
				report(verb, err)
			}
		case "cat":
			b, err := os.ReadFile(rest)
			fmt.Printf("%s=%s %v\n", rest, strings.Join(strings.Fields(string(b)), " "), err)
		case "chown5":
			report("chown", os.Chown(rest, 5, 5))
		case "setgroups":
			report("setgroups", unix.Setgroups([]int{7}))
		case "mount":
			report("mount", unix.Mount("none", rest, "tmpfs", 0, ""))
		case "ids":
			fmt.Printf("ids=%d %d %d\n", os.Getuid(), os.Getgid(), os.Getpid())
		case "session":
			sid, _ := unix.Getsid(0)
			fmt.Printf("session=%d %d\n", sid, unix.Getpgrp())
		case "pdeathsig":
			var sig int32
			err := unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(pointer(&sig)), 0, 0, 0)
			fmt.Printf("pdeathsig=%d %v\n", sig, err)
		case "exit":
			var code int
			fmt.Sscan(rest, &code)
			return code
		case "block":
			io.Copy(io.Discard, os.Stdin)
		}
	}
	return 0
}

// inside starts the inhabitant and returns its lines by name and its status.
func inside(t *testing.T, maps IDMaps, change func(*Config), args ...string) (map[string]string, *Process, unix.WaitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cfg := Config{Maps: maps, Argv: append([]string{"inhabitant"}, args...), Files: []*os.File{nil, w, os.Stderr}, Pdeathsig: unix.SIGKILL}
	if change != nil {
		change(&cfg)
	}
	p, err := Start(context.Background(), cfg)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		lines[name] = value
	}
	return lines, p, status
}

func mustPlan(t *testing.T, mode Mode) IDMaps {
	t.Helper()
	maps, err := PlanMaps(context.Background(), mode)
	if err != nil {
		t.Fatal(err)
	}
	return maps
}

// allCapabilities is the mask of all capabilities that the kernel knows.
func allCapabilities(t *testing.T) string {
	t.Helper()
	var last int
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Sscan(string(b), &last)
	return fmt.Sprintf("%016x", uint64(1)<<(last+1)-1)
}

func TestSubordinateIDs(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps := mustPlan(t, Auto)
	if maps.Single || maps.Notice != "" || maps.Direct || len(maps.UID) < 2 {
		t.Fatalf("plan %+v", maps)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, p, status := inside(t, maps, nil,
		"ids", "status:CapEff", "status:CapPrm", "cat:/proc/self/uid_map", "chown5:"+file, "setgroups", "mount:"+dir, "exit:42")
	if status.ExitStatus() != 42 {
		t.Errorf("status %v", status)
	}
	if p.Maps.Notice != "" {
		t.Errorf("notice %q", p.Maps.Notice)
	}
	want := map[string]string{
		"CapEff": allCapabilities(t), "CapPrm": allCapabilities(t),
		"chown": "<nil>", "setgroups": "<nil>", "mount": "<nil>",
		"/proc/self/uid_map": strings.Join(strings.Fields(maps.UID.String()), " ") + " <nil>",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if !strings.HasPrefix(got["ids"], "0 0 ") {
		t.Errorf("ids %q", got["ids"])
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	if outside, ok := maps.UID.ToOutside(5); !ok || st.Uid != outside {
		t.Errorf("file belongs to %d, want %d", st.Uid, outside)
	}
}

func TestSingleID(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	dir := t.TempDir()
	got, p, status := inside(t, mustPlan(t, Single), nil,
		"ids", "status:CapEff", "cat:/proc/self/setgroups", "chown5:"+dir, "setgroups", "mount:"+dir)
	if status.ExitStatus() != 0 || !p.Maps.Single {
		t.Errorf("status %v, maps %+v", status, p.Maps)
	}
	want := map[string]string{
		"CapEff": allCapabilities(t), "/proc/self/setgroups": "deny <nil>", "mount": "<nil>",
		"setgroups": "operation not permitted", "chown": "chown " + dir + ": invalid argument",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

// newuidmap's refusal at run time must not end the start in auto mode.
func TestFallsBackWhenNewuidmapRefuses(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps := mustPlan(t, Auto)
	maps.NewUIDMap = filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(maps.NewUIDMap, []byte("#!/bin/sh\necho 'uid range is not allowed' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, p, _ := inside(t, maps, nil, "ids")
	if !p.Maps.Single || !strings.HasPrefix(got["ids"], "0 0 ") {
		t.Errorf("maps %+v, ids %q", p.Maps, got["ids"])
	}
	if n := p.Maps.Notice; !strings.Contains(n, "uid range is not allowed") || strings.Contains(n, "\n") {
		t.Errorf("notice %q", n)
	}
	maps.Fallback = false
	if _, err := Start(context.Background(), Config{Maps: maps, Argv: []string{"inhabitant"}}); !errors.Is(err, ErrMapping) {
		t.Errorf("without fallback: %v, want ErrMapping", err)
	}
}

// newgidmap failing after newuidmap succeeded needs a new namespace: a map can be
// written only once.
func TestFallsBackWhenNewgidmapRefuses(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps := mustPlan(t, Auto)
	maps.NewGIDMap = "/bin/false"
	got, p, _ := inside(t, maps, nil, "ids", "cat:/proc/self/uid_map")
	if want := strings.Join(strings.Fields(userns.SingleMap(uint32(os.Getuid())).String()), " ") + " <nil>"; got["/proc/self/uid_map"] != want {
		t.Errorf("uid_map %q, want %q", got["/proc/self/uid_map"], want)
	}
	if !p.Maps.Single {
		t.Errorf("maps %+v", p.Maps)
	}
}

func TestFurtherNamespacesAndSession(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	ours := fmt.Sprintf("%d %d", sid, unix.Getpgrp())
	single := mustPlan(t, Single)
	got, _, _ := inside(t, single, nil, "session", "pdeathsig")
	if got["session"] != ours || got["pdeathsig"] != "9 <nil>" {
		t.Errorf("session %q, want %q; pdeathsig %q", got["session"], ours, got["pdeathsig"])
	}
	got, p, _ := inside(t, single, func(c *Config) { c.Setpgid = true }, "session")
	if want := fmt.Sprintf("%d %d", sid, p.PID); got["session"] != want {
		t.Errorf("Setpgid: session %q, want %q", got["session"], want)
	}
	all := func(c *Config) { c.PID, c.IPC, c.UTS, c.Cgroup, c.Setsid = true, true, true, true, true }
	got, _, _ = inside(t, single, all, "ids", "session", "pdeathsig")
	if got["ids"] != "0 0 1" || got["session"] != "1 1" || got["pdeathsig"] != "9 <nil>" {
		t.Errorf("ids %q, session %q, pdeathsig %q", got["ids"], got["session"], got["pdeathsig"])
	}
}

func TestNamespacesAreNew(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	p, w := blocked(t, Config{Maps: mustPlan(t, Single), IPC: true})
	defer w.Close()
	for _, ns := range []string{"user", "net", "mnt", "ipc"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, ns))
		if err != nil || terr != nil || mine == theirs {
			t.Errorf("%s: ours %s (%v), theirs %s (%v)", ns, mine, err, theirs, terr)
		}
	}
}

// TestHostNet: the network namespace stays ours, all others do not.
func TestHostNet(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	p, w := blocked(t, Config{Maps: mustPlan(t, Single), HostNet: true})
	defer w.Close()
	for ns, shared := range map[string]bool{"net": true, "user": false, "mnt": false} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, ns))
		if err != nil || terr != nil || (mine == theirs) != shared {
			t.Errorf("%s: ours %s (%v), theirs %s (%v)", ns, mine, err, theirs, terr)
		}
	}
}

// blocked starts an inhabitant that lives until the returned pipe is closed.
func blocked(t *testing.T, cfg Config) (*Process, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cfg.Argv = []string{"inhabitant", "block"}
	cfg.Files = []*os.File{r, nil, os.Stderr}
	p, err := Start(context.Background(), cfg)
	if err != nil {
		w.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, w
}

func TestRefusedConfigurations(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	single := mustPlan(t, Single)
	unmapped := single
	unmapped.UID = userns.Map{{Inside: 1, Outside: uint32(os.Getuid()), Count: 1}}
	foreign := single
	foreign.UID = userns.SingleMap(uint32(os.Getuid()) + 1)
	for _, tc := range []struct {
		name string
		cfg  Config
		want error
	}{
		{"no maps", Config{}, userns.ErrMap},
		{"id 0 unmapped", Config{Maps: unmapped}, userns.ErrMap},
		{"somebody else's id", Config{Maps: foreign}, unix.EPERM},
		{"no such program", Config{Maps: single, Path: "/nonexistent"}, unix.ENOENT},
		{"no such directory", Config{Maps: single, Dir: "/nonexistent"}, unix.ENOENT},
	} {
		_, err := Start(context.Background(), tc.cfg)
		if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if _, err := PlanMaps(context.Background(), "all"); err == nil {
		t.Error("mode all accepted")
	}
}

func TestStartEndsWithContext(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps := mustPlan(t, Auto)
	maps.NewUIDMap = filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(maps.NewUIDMap, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, Config{Maps: maps, Argv: []string{"inhabitant"}}); err == nil {
		t.Error("start went on without newuidmap")
	}
}

// As root the maps are written directly.
func TestRootMapsDirectly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is about root; the other tests are about users")
	}
	maps := mustPlan(t, Auto)
	if !maps.Direct {
		t.Fatalf("plan %+v", maps)
	}
	full, err := userns.FullMap(0, []userns.Subrange{{Start: 100000, Count: 65536}, {Start: 300000, Count: 10}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []IDMaps{maps, {UID: full, GID: full, Direct: true}} {
		got, p, _ := inside(t, m, nil, "ids", "status:CapEff", "setgroups", "cat:/proc/self/gid_map")
		if got["CapEff"] != allCapabilities(t) || got["setgroups"] != "<nil>" || p.Maps.Single {
			t.Errorf("got %v, maps %+v", got, p.Maps)
		}
		if want := strings.Join(strings.Fields(m.GID.String()), " ") + " <nil>"; got["/proc/self/gid_map"] != want {
			t.Errorf("gid_map %q, want %q", got["/proc/self/gid_map"], want)
		}
	}
}
