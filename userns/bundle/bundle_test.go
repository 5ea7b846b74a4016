package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns"
)

// umoci is a shortened config.json of umoci unpack --rootless.
const umoci = `{
	"ociVersion": "1.0.0",
	"x-unknown": {"b": 1.50, "a": [1e400, "\u00fc<&>"]},
	"process": {
		"terminal": true,
		"capabilities": {
			"bounding": [
				"CAP_KILL",
				"CAP_CHOWN"
			],
			"effective": ["CAP_KILL"],
			"inheritable": ["CAP_KILL"],
			"permitted": ["CAP_KILL"],
			"ambient": ["CAP_KILL"]
		},
		"cwd": "/"
	},
	"root": {
		"path": "rootfs"
	},
	"hostname": "umoci-default",
	"mounts": [
		{
			"destination": "/proc",
			"type": "proc",
			"source": "proc",
			"x-unknown": true
		},
		{
			"destination": "/etc/resolv.conf",
			"type": "bind",
			"source": "/etc/resolv.conf",
			"options": ["rbind", "ro"]
		}
	],
	"annotations": {
		"io.postern.publish": "0.0.0.0:22:22",
		"org.opencontainers.image.exposedPorts": "53/udp,80"
	},
	"linux": {
		"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
		"gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
		"namespaces": [
			{"type": "pid"},
			{"type": "user"}
		],
		"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}
	}
}
`

// runcSpec has another layout, no annotations, hooks of somebody else's.
const runcSpec = `{
  "root": {"path": "/somewhere/else"},
  "hooks": {"createRuntime": [{"path": "/bin/other", "x-unknown": 1}]},
  "linux": {"namespaces": [{"type": "network", "path": "/run/netns/a"}, {"type": "mount"}], "sysctl": {"net.ipv4.ping_group_range": "1 0"}}
}`

func plan() Plan {
	full := userns.Map{{Inside: 0, Outside: 1000, Count: 1}, {Inside: 1, Outside: 100000, Count: 65536}}
	return Plan{
		UID: full, GID: full, KeepMaps: true,
		Hook:        Hook{Path: "/bin/postern", Args: append(HookWords[:], EventPlace, "--x"), Env: []string{"HOME=/"}, Timeout: 30},
		Annotations: map[string]string{PublishAnnotation: "80:80 53:53/udp"},
		ResolvConf:  []byte("nameserver 10.0.2.3\n"), Hosts: []byte("127.0.0.1\tlocalhost\n"),
	}
}

// place makes a bundle.
func place(t *testing.T, config string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, configFile), []byte(config), 0o640); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// edit opens a bundle, thinks an edit out and makes it.
func edit(t *testing.T, dir string, think func(*Bundle) (*Change, error)) *Change {
	t.Helper()
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, err := think(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Make(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func prepare(t *testing.T, dir string, p Plan) *Change {
	t.Helper()
	return edit(t, dir, func(b *Bundle) (*Change, error) { return b.Prepare(p) })
}

func undo(t *testing.T, dir string) {
	t.Helper()
	edit(t, dir, (*Bundle).Undo)
}

// parsed is what a runtime makes of a bundle.
func parsed(t *testing.T, dir string) (s specs.Spec) {
	t.Helper()
	// 1e400 is no float64: what nobody knows must still be kept.
	text := strings.Replace(read(t, dir, configFile), "1e400", "1", 1)
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPrepareSays(t *testing.T) {
	dir := place(t, umoci)
	prepare(t, dir, plan())
	s := parsed(t, dir)
	side := filepath.Join(dir, SideDir)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}}
	options := []string{"bind", "ro", "nosuid", "nodev", "noexec"}
	timeout := 30
	hook := func(event string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/postern", Args: []string{"postern", "oci", "hook", event, "--x"}, Env: []string{"HOME=/"}, Timeout: &timeout}}
	}
	for _, c := range []struct{ got, want any }{
		{s.Linux.Namespaces, []specs.LinuxNamespace{{Type: "pid"}, {Type: "user"}, {Type: "network"}}},
		{s.Linux.UIDMappings, maps}, {s.Linux.GIDMappings, maps},
		{s.Linux.Sysctl, map[string]string{sysctlPorts: "0", sysctlPing: "0 65536"}},
		{s.Mounts, []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/etc/resolv.conf", Type: "bind", Source: side + "/resolv.conf", Options: options},
			{Destination: "/etc/hosts", Type: "bind", Source: side + "/hosts", Options: options},
		}},
		{s.Hooks, &specs.Hooks{CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"), Poststop: hook("poststop")}},
		{s.Annotations, map[string]string{ExposedAnnotation: "53/udp,80", PublishAnnotation: "80:80 53:53/udp"}},
		{s.Process.Capabilities.Effective, append([]string{"CAP_KILL"}, idCapabilities...)},
		{s.Process.Capabilities.Ambient, []string{"CAP_KILL"}},
		{s.Process.Capabilities.Inheritable, []string{"CAP_KILL"}},
		{read(t, side, resolvFile), "nameserver 10.0.2.3\n"}, {read(t, side, configFile), umoci},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Error(d)
		}
	}
	for _, kept := range []string{`"a": [`, "1e400", `\u00fc<&>`, `"b": 1.50`, `"x-unknown": true`, "SCMP_ACT_ERRNO"} {
		if !strings.Contains(read(t, dir, configFile), kept) {
			t.Errorf("%q is gone", kept)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, configFile)); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestIdempotentAndUndone(t *testing.T) {
	for name, config := range map[string]string{"umoci": umoci, "runc": runcSpec, "bare": `{}`, "one line": `{"root":{"path":"r"}}` + "\n"} {
		t.Run(name, func(t *testing.T) {
			dir := place(t, config)
			if !prepare(t, dir, plan()).Changed() {
				t.Error("nothing changed")
			}
			first := read(t, dir, configFile)
			if prepare(t, dir, plan()).Changed() || read(t, dir, configFile) != first {
				t.Error("the second time changed something")
			}
			other := plan()
			other.Annotations, other.UID, other.GID, other.KeepMaps = nil, userns.SingleMap(1000), userns.SingleMap(1000), false
			prepare(t, dir, other)
			twice := read(t, dir, configFile)
			undo(t, dir)
			if got := read(t, dir, configFile); got != config {
				t.Errorf("undone:\n%s", cmp.Diff(config, got))
			}
			if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			prepare(t, dir, other)
			if got := read(t, dir, configFile); got != twice {
				t.Errorf("prepared otherwise, and from the original:\n%s", cmp.Diff(twice, got))
			}
		})
	}
}

// TestEdited: an edit that somebody makes to a prepared bundle survives another
// Prepare and Undo.
func TestEdited(t *testing.T) {
	for _, config := range []string{umoci, runcSpec} {
		dir := place(t, config)
		prepare(t, dir, plan())
		path := filepath.Join(dir, configFile)
		edited := strings.Replace(read(t, path), `"linux"`, `"domainname": "edited", "linux"`, 1)
		if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
			t.Fatal(err)
		}
		prepare(t, dir, plan())
		if s := parsed(t, dir); s.Domainname != "edited" || len(s.Hooks.Poststop) != 1 {
			t.Errorf("after another Prepare: domainname %q, %d hooks", s.Domainname, len(s.Hooks.Poststop))
		}
		undo(t, dir)
		want := place(t, strings.Replace(config, `"linux"`, `"domainname": "edited", "linux"`, 1))
		if d := cmp.Diff(parsed(t, want), parsed(t, dir)); d != "" {
			t.Errorf("undone:\n%s", d)
		}
	}
}

// TestCopied: a copy of a prepared bundle, with or without the side directory, can
// be prepared itself.
func TestCopied(t *testing.T) {
	for _, with := range []bool{true, false} {
		from := place(t, umoci)
		prepare(t, from, plan())
		to := place(t, read(t, from, configFile))
		if with {
			if err := os.CopyFS(filepath.Join(to, SideDir), os.DirFS(filepath.Join(from, SideDir))); err != nil {
				t.Fatal(err)
			}
		}
		prepare(t, to, plan())
		text := read(t, to, configFile)
		if strings.Contains(text, from) || strings.Count(text, `"/bin/postern"`) != 3 || strings.Count(text, "/etc/resolv.conf") != 1 {
			t.Errorf("copied with side directory %v:\n%s", with, text)
		}
	}
}

func TestKeepMaps(t *testing.T) {
	own := strings.Replace(umoci, `"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]`, `"uidMappings": [{"containerID": 0, "hostID": 7, "size": 3}]`, 1)
	dir := place(t, own)
	prepare(t, dir, plan())
	if s := parsed(t, dir); s.Linux.UIDMappings[0].Size != 3 || len(s.Process.Capabilities.Effective) != 1 {
		t.Errorf("maps %v, capabilities %v", s.Linux.UIDMappings, s.Process.Capabilities.Effective)
	}
	none := plan()
	none.UID, none.GID = nil, nil
	dir = place(t, `{"linux": {"namespaces": []}}`)
	prepare(t, dir, none)
	if s := parsed(t, dir); s.Linux.UIDMappings != nil || len(s.Linux.Namespaces) != 1 || s.Linux.Sysctl[sysctlPing] != "" {
		t.Errorf("without maps: %+v", s.Linux)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct{ config, want string }{
		"no JSON":           {"{", "parse JSON"},
		"no object":         {"[]", "want an object"},
		"empty":             {"", "parse JSON"},
		"more follows":      {"{} {}", "something follows"},
		"twice":             {`{"linux":{},"linux":{}}`, `"linux" stands beside "linux"`},
		"in another case":   {`{"linux":{},"Linux":{}}`, `"Linux" stands beside "linux"`},
		"linux is a list":   {`{"linux":[]}`, "linux: "},
		"hooks is a string": {`{"hooks":"x"}`, "hooks: "},
		"mounts an object":  {`{"mounts":{}}`, "mounts: "},
		"root is here":      {`{"root":{"path":"."}}`, "holds the bundle itself"},
		"root is above":     {`{"root":{"path":".."}}`, "holds the bundle itself"},
		"root is the host":  {`{"root":{"path":"/"}}`, "holds the bundle itself"},
		"long":              {`{"x":"` + strings.Repeat("x", maxConfig) + `"}`, "longer than"},
	} {
		dir := place(t, c.config)
		b, err := Open(dir)
		if err == nil {
			_, err = b.Prepare(plan())
			b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if got := read(t, dir, configFile); got != c.config {
			t.Errorf("%s: config.json was changed", name)
		}
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no config.json: %v", err)
	}
	b, err := Open(place(t, umoci))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Undo(); !errors.Is(err, ErrNotPrepared) {
		t.Errorf("Undo of what is not prepared: %v", err)
	}
}

// TestPlants: links and devices at the names that we use are not followed.
func TestPlants(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	plants := map[string]func(string) error{
		"symlink":  func(path string) error { return os.Symlink(victim, path) },
		"hardlink": func(path string) error { return os.Link(victim, path) },
		"fifo":     func(path string) error { return unix.Mkfifo(path, 0o600) },
	}
	for kind, plant := range plants {
		for _, name := range []string{resolvFile, hostsFile, configFile, sumFile} {
			dir := place(t, umoci)
			side := filepath.Join(dir, SideDir)
			if err := errors.Join(os.Mkdir(side, 0o700), plant(filepath.Join(side, name))); err != nil {
				t.Fatal(err)
			}
			b, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if c, err := b.Prepare(plan()); err == nil {
				_ = b.Make(c) // replacing the plant is as good as refusing it
			}
			b.Close()
			_ = Refresh(side, []byte("x"), []byte("x"))
			if got := read(t, victim); got != "precious" {
				t.Fatalf("%s at %s: the victim is %q", kind, name, got)
			}
		}
	}
	dir := place(t, umoci)
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, SideDir)); err != nil {
		t.Fatal(err)
	}
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, err := b.Prepare(plan())
	if err == nil {
		err = b.Make(c)
	}
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a linked %s: %v", SideDir, err)
	}
	linked := t.TempDir()
	if err := os.Symlink(filepath.Join(place(t, umoci), configFile), filepath.Join(linked, configFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(linked); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a linked config.json: %v", err)
	}
}

func TestDiffAndRefresh(t *testing.T) {
	dir := place(t, umoci)
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Prepare(plan())
	if err != nil {
		t.Fatal(err)
	}
	if d := string(c.Diff()); !strings.Contains(d, "\n+\t\t\t\t\"type\": \"network\"\n") || !strings.Contains(d, "\n-\t\t\"io.postern.publish\": \"0.0.0.0:22:22\",\n") {
		t.Errorf("diff:\n%s", d)
	}
	if claims, err := b.Claims(); err != nil || claims[PublishAnnotation] != `"0.0.0.0:22:22"` || b.Hostname() != "umoci-default" {
		t.Errorf("Claims %v, %v, Hostname %q", claims, err, b.Hostname())
	}
	b.Close()
	side := filepath.Join(dir, SideDir)
	if err := Refresh(side, []byte("x"), nil); err != nil {
		t.Errorf("Refresh of what is not there: %v", err)
	}
	prepare(t, dir, plan())
	if err := Refresh(side, []byte("short"), nil); err != nil || read(t, side, resolvFile) != "short" || read(t, side, hostsFile) == "" {
		t.Errorf("Refresh: %v, %q", err, read(t, side, resolvFile))
	}
}

func TestParseExposed(t *testing.T) {
	got, others, err := ParseExposed("53/udp,80, 8000-8002/TCP,80/tcp,,9/sctp")
	want := []Exposed{{53, "udp"}, {80, "tcp"}, {8000, "tcp"}, {8001, "tcp"}, {8002, "tcp"}}
	if d := cmp.Diff(want, got); d != "" || err != nil || len(others) != 1 {
		t.Errorf("%s%v %v", d, others, err)
	}
	for _, bad := range []string{"0", "x", "65536/tcp", "5-4", "1-65535/udp", "-1", "80 ,\n;x"} {
		if got, _, err := ParseExposed(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// FuzzPrepare: whatever JSON a bundle has, Prepare fails or is idempotent, and its
// result without what is ours is the original.
func FuzzPrepare(f *testing.F) {
	for _, seed := range []string{umoci, runcSpec, `{}`, `{"linux":null,"mounts":[null,1]}`, `{"process":{"capabilities":{}},"annotations":{"a":1}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, config string) {
		doc, err := parseObject([]byte(config), true)
		if err != nil {
			return
		}
		once := append(object(nil), doc...)
		if apply(&once, plan(), "/b/"+SideDir) != nil {
			return
		}
		text, err := layout{}.format(once)
		if err != nil {
			t.Fatalf("%q: %v", config, err)
		}
		again, err := parseObject(text, true)
		if err != nil {
			t.Fatalf("%q became %q: %v", config, text, err)
		}
		if err := revert(&again, doc, "/b/"+SideDir); err != nil {
			t.Fatalf("revert %q: %v", text, err)
		}
		if err := apply(&again, plan(), "/b/"+SideDir); err != nil {
			t.Fatalf("apply to %q: %v", again.text(), err)
		}
		if twice, err := (layout{}).format(again); err != nil || !bytes.Equal(twice, text) {
			t.Fatalf("%q twice:\n%s\n%s", config, text, twice)
		}
	})
}
