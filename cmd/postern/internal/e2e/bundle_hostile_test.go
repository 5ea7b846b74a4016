package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// trap is a bundle whose root file system is full of traps, and a process in
// namespaces of its own that stands for the container's.
type trap struct {
	account
	target       *foreign
	bundle, root string
}

func setTrap(t *testing.T) *trap {
	t.Helper()
	a := ordinary(t)
	h := &trap{account: a, target: newForeign(t, a), bundle: a.runtime + "/bundle"}
	h.root = h.bundle + "/rootfs"
	a.mustCommand(t, "sh", "-c", fmt.Sprintf(`set -e
mkdir -p %[1]s/.postern %[2]s/bin %[2]s/etc %[2]s/run/postern %[2]s/usr/lib %[2]s/zoneinfo %[2]s/.postern
cd %[2]s
for f in bin/postern bin/ip bin/nsenter bin/getsubids bin/newuidmap postern sh ldd; do printf '#!/bin/sh\ntouch %[2]s/SPRUNG\n' >$f; chmod 755 $f; done
for f in etc/resolv.conf etc/hosts etc/nsswitch.conf etc/passwd etc/localtime evil.so zoneinfo/Trap; do echo trap >$f; done
mkfifo etc/fifo
ln -s / outside
chmod 700 run run/postern
echo '{"root":{"path":"rootfs"}}' >%[1]s/config.json
echo x >%[1]s/.postern/resolv.conf
echo x >%[1]s/.postern/hosts
`, h.bundle, h.root))
	return h
}

// state is what the runtime would write.
func (h *trap) state() string {
	b, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": "trapped", "status": "creating", "pid": h.target.cmd.Process.Pid, "bundle": h.bundle,
		"annotations": map[string]string{"io.postern.publish": "6379:6379", "io.postern.host-ip": "auto", "x": h.root},
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// hostileHook is a hook in bad company: extra environment, another state, or a
// machine that an earlier run left in disorder.
type hostileHook struct {
	name  string
	env   []string
	state func(string) string
	mess  string // a shell script, in the runtime directory
	fails string // what the error says; "" for a hook that works
	// elsewhere says that the instance cannot be where it is looked for.
	elsewhere bool
}

func hostileHooks(h *trap) []hostileHook {
	r := h.root
	replaced := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	pid := func(member string) func(string) string {
		return func(s string) string { return regexp.MustCompile(`"pid":\d+`).ReplaceAllString(s, member) }
	}
	var all []hostileHook
	for _, env := range [][]string{
		{"LD_PRELOAD=" + r + "/evil.so"}, {"LD_LIBRARY_PATH=" + r + "/usr/lib"}, {"LD_AUDIT=" + r + "/evil.so"}, {"PATH=."}, {"PATH=" + r + "/bin"},
		{"XDG_RUNTIME_DIR=" + r + "/run"}, {"HOME=" + r}, {"TMPDIR=" + r}, {"PWD=" + r}, {"TZ=" + r + "/etc/localtime"}, {"ZONEINFO=" + r + "/zoneinfo", "TZ=Trap"},
		{"GODEBUG=inittrace=0,netdns=go,http2debug=2"}, {"GOTRACEBACK=crash"}, {"GOGC=off"}, {"GOMEMLIMIT=1"}, {"GOMAXPROCS=1"}, {"GOCOVERDIR=" + r}, {"GORACE=log_path=" + r + "/race"},
		{"HOSTALIASES=" + r + "/etc/hosts", "LOCALDOMAIN=trap", "RES_OPTIONS=ndots:9"}, {"LISTEN_FDS=3", "LISTEN_PID=1"}, {"NOTIFY_SOCKET=" + r + "/etc/fifo"},
		{"POSTERN_STATE_DIR=" + r, "ROOTLESSKIT_STATE_DIR=" + r}, {"SSL_CERT_FILE=" + r + "/etc/fifo", "NSS_WRAPPER_PASSWD=" + r + "/etc/passwd"}, {"A=\xff\n", "IFS=/"},
	} {
		all = append(all, hostileHook{name: "environment " + env[0], env: env})
	}
	for _, m := range [][2]string{
		{"a dead instance", "mkdir -p -m 700 postern/trapped; cd postern/trapped; touch lock instance.json child_pid resolv.conf"},
		{"damaged state", `mkdir -p -m 700 postern/trapped; cd postern/trapped; touch lock; echo '{"version":1,"pid":1,"command":["oci","trapped","/"]}' >instance.json`},
		{"a linked log", "mkdir -p -m 700 postern; ln -s " + r + "/etc/passwd postern/.trapped.log"},
		{"a log that is a fifo", "mkdir -p -m 700 postern; mkfifo postern/.trapped.log"},
		{"a socket of somebody", "ln -s " + r + "/etc/fifo bundle/.postern/trapped.sock"},
		{"a linked error", "ln -s " + r + "/etc/passwd bundle/.postern/error"},
		{"a linked resolv.conf", "ln -sf " + r + "/etc/resolv.conf bundle/.postern/resolv.conf"},
	} {
		all = append(all, hostileHook{name: m[0], mess: m[1]})
	}
	all = append(all,
		hostileHook{name: "a linked instance", mess: "mkdir -p -m 700 postern; ln -s " + r + "/run postern/trapped", fails: "trapped"},
		hostileHook{name: "a linked root directory", mess: "ln -s " + r + "/run/postern postern", elsewhere: true},
	)
	for _, c := range []struct {
		name   string
		change func(string) string
		fails  string
	}{
		{"empty", func(string) string { return "" }, "it is empty"},
		{"half a state", func(s string) string { return s[:len(s)/2] }, "parse JSON"},
		{"two states", func(s string) string { return s + s }, "parse JSON"},
		{"a list", func(s string) string { return "[" + s + "]" }, "want an object"},
		{"2 MiB", replaced(`"x":"`, `"x":"`+strings.Repeat("y", 2<<20)), "longer than"},
		{"deep", func(string) string { return strings.Repeat(`{"a":`, 50000) }, "parse JSON"},
		{"binary", func(string) string { return "\x00\xff\xfe" }, "want an object"},
		{"a path as id", replaced(`"trapped"`, `"../../rootfs"`), "id"},
		{"no id", replaced(`"trapped"`, `""`), "id"},
		{"two pids", replaced(`"pid"`, `"Pid":1,"pid"`), "stands twice"},
		{"our init", pid(`"pid":1`), "process 1"},
		{"nobody's pid", pid(`"pid":4194303`), "process 4194303"},
		{"no pid", pid(`"pid":0`), "pid 0"},
		{"the host's", pid(fmt.Sprintf(`"pid":%d`, os.Getpid())), "process"},
		{"relative bundle", replaced(`"`+h.bundle+`"`, `"rootfs"`), "absolute path"},
		{"stopped", replaced(`"creating"`, `"stopped"`), "status"},
		{"hostile rule", replaced(`6379:6379`, `unix:`+r+`/x.sock:unix:/etc/passwd`), "unix socket"},
		{"malformed rule", replaced(`6379:6379`, `--help`), "port spec"},
		{"malformed host IP", replaced(`"auto"`, `"--state-dir=/"`), "host-ip"},
		{"option as rule", replaced(`6379:6379`, `80 --exit-fd=0`), "port spec"},
	} {
		all = append(all, hostileHook{name: "state: " + c.name, state: c.change, fails: c.fails})
	}
	all = append(all, hostileHook{name: "state: bundle below the root", state: replaced(`"`+h.bundle+`"`, `"`+r+`"`)},
		hostileHook{name: "state: bundle through a link", state: replaced(`"`+h.bundle+`"`, `"`+r+`/outside`+r+`"`)})
	return all
}

// TestHostileHooks: whatever stands in a hook's environment, its state or its way,
// it works or says in one line why not, and opens nothing below the container's root.
func TestHostileHooks(t *testing.T) {
	if !lab.root {
		missing(t, "strace becomes the user, which takes root")
	}
	if os.Getenv("POSTERN_E2E_RACE") != "" {
		t.Skip("a program with the race detector is dynamically linked, and loads what it is told to")
	}
	strace := tool(t, "strace")
	n := len(hostileHooks(&trap{}))
	if n < 50 {
		t.Fatalf("%d hostile hooks, want 50", n)
	}
	for index := range n {
		h := setTrap(t)
		c := hostileHooks(h)[index]
		t.Run(c.name, func(t *testing.T) {
			if c.mess != "" {
				h.mustCommand(t, "sh", "-c", "cd "+h.runtime+" && "+c.mess)
			}
			h.spring(t, strace, c)
		})
		h.target.kill()
	}
	t.Logf("%d hostile hooks", n)
}

// spring calls the hook under strace, with the root as its working directory.
func (h *trap) spring(t *testing.T, strace string, c hostileHook) {
	t.Helper()
	state := h.state()
	if c.state != nil {
		state = c.state(state)
	}
	trace, status := t.TempDir()+"/trace", h.runtime+"/status"
	args := []string{"-u", lab.user, "-f", "-y", "-s", "4096", "-o", trace, "-e", "trace=open,openat,openat2,creat,execve,execveat,connect"}
	// The daemon is traced too, so strace ends with the target; the shell tells the
	// hook's own end.
	script := fmt.Sprintf(`env "$@" 2>%[1]s.err; echo $? >%[1]s.new; mv %[1]s.new %[1]s`, status)
	hook := []string{lab.dir + "/postern", "oci", "hook", "createRuntime", "--files=" + h.bundle + "/.postern", "--annotations", "--runtime-dir=" + h.runtime}
	cmd := exec.CommandContext(context.Background(), strace, append(append(args, "/bin/sh", "-c", script, "sh"), append(c.env, hook...)...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = userEnv(h.runtime), h.root, strings.NewReader(state)
	var said lockedBuffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var code string
	err := eventually(within, func() error { b, err := os.ReadFile(status); code = strings.TrimSpace(string(b)); return err })
	message, _ := os.ReadFile(status + ".err")
	if err == nil && c.fails == "" && !c.elsewhere {
		h.works(t, code, string(message))
	}
	h.target.kill()
	if werr := cmd.Wait(); err != nil || werr != nil && c.fails == "" {
		t.Fatalf("%v, strace: %v: %s%s", err, werr, said.String(), message)
	}
	if c.fails != "" && (code != "125" || !strings.Contains(string(message), c.fails) || strings.Count(string(message), "\n") != 1 || len(message) > 1000) {
		t.Errorf("exit code %s, said %s, want %q", code, message, c.fails)
	}
	h.untouched(t, trace)
	if left, _ := filepath.Glob(h.runtime + "/postern/*/api.sock"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// works checks the network that a hook which succeeded has made.
func (h *trap) works(t *testing.T, code, message string) {
	t.Helper()
	if code != "0" || message != "" {
		t.Errorf("exit code %s, said %s", code, message)
		return
	}
	h.target.mustExec(t, probe(), "@good", remote4, "1")
	if out := h.mustCommand(t, lab.dir+"/postern", "ports", "list", "--name", "trapped"); !strings.Contains(out, ":6379") {
		t.Errorf("ports: %s", out)
	}
}

// untouched looks for opened or executed files below the root in a trace.
func (h *trap) untouched(t *testing.T, trace string) {
	t.Helper()
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(h.root + "/SPRUNG"); err == nil {
		t.Error("a trap was executed")
	}
	calls := 0
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "open") && !strings.Contains(line, "exec") && !strings.Contains(line, "connect") {
			continue
		}
		calls++
		if strings.Contains(line, "exec") && strings.Contains(line, `"oci"`) {
			continue // arguments may name what they like
		}
		if h.below(line) {
			t.Errorf("below the root: %s", line)
		}
	}
	if calls < 10 {
		t.Errorf("strace saw %d calls only: %s", calls, text)
	}
}

// below reports whether a traced call succeeds in, or tries, something below the
// root: by its path, by a path relative to it, or by what strace says was opened.
func (h *trap) below(line string) bool {
	_, call, _ := strings.Cut(line, "(")
	cwd := "AT_FDCWD<" + h.root + ">, \""
	if i := strings.Index(call, cwd); i >= 0 && call[i+len(cwd)] != '/' {
		return true
	}
	return strings.Contains(strings.ReplaceAll(call, "AT_FDCWD<"+h.root+">", ""), h.root)
}

// TestBundleHooksTraced is the same for all hooks of a real container.
func TestBundleHooksTraced(t *testing.T) {
	if !lab.root || !lab.subids {
		missing(t, "strace becomes the user, which takes root")
	}
	a := ordinary(t)
	bundle := unpack(t, a, redisImage(t, a), "bundle", "true")
	a.mustCommand(t, lab.dir+"/postern", "oci", "prepare", "--publish-exposed", "--host-ip", "auto", bundle)
	trace := t.TempDir() + "/trace"
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "strace"), "-u", lab.user, "-ff", "-y", "-s", "4096", "-o", trace, "-e", "trace=open,openat,openat2,creat,execve,execveat",
		tool(t, "runc"), "run", "--bundle", bundle, "traced")
	cmd.Env = userEnv(a.runtime)
	if o := finish(cmd); o.code != 0 {
		t.Fatalf("exit code %d: %s%s", o.code, o.out, o.err)
	}
	h := &trap{account: a, bundle: bundle, root: bundle + "/rootfs"}
	files, _ := filepath.Glob(trace + ".*")
	hooks := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, ours, found := strings.Cut(string(text), `["postern", "oci", `)
		if !found {
			continue
		}
		name, rest, _ := strings.Cut(ours, "\n")
		words := strings.Split(name, `"`)
		hooks[words[1]+" "+words[3]] = true
		for line := range strings.Lines(rest) {
			if h.below(line) {
				t.Errorf("%s: below the root: %s", words[1], line)
			}
		}
	}
	for _, want := range []string{"hook createRuntime", "hook createContainer", "hook poststop"} {
		if !hooks[want] {
			t.Errorf("not traced: %s; seen %v", want, hooks)
		}
	}
}
