package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// statusField returns a line of /proc/PID/status.
func statusField(t testing.TB, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return ""
}

// TestEngineIsPowerless: no thread of the engine has a capability in any set that it
// could use or gets one by executing anything, and each has its system calls filtered,
// whoever started it; what it moves is nobody's to read.
func TestEngineIsPowerless(t *testing.T) {
	for name, a := range map[string]account{"user": ordinary(t), "root": newAccount(t, 0, 0)} {
		t.Run(name, func(t *testing.T) {
			i := a.start(t, "caps")
			i.mustExec(t, probe(), "@many", "2", "20", remote4, remote6) // has threads started
			engine := i.mustStatus(t).EnginePID
			const none = "0000000000000000"
			want := map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1"}
			if runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64" {
				want["Seccomp"] = "2" // a filter
			}
			if name == "root" || !lab.root {
				// Who has no capability cannot lower the bounding set, but with
				// no_new_privs it bounds nothing either.
				want["CapBnd"] = none
			}
			for _, thread := range threadsOf(t, engine) {
				for field, value := range want {
					if got := statusField(t, thread, field); got != value {
						t.Errorf("engine, thread %d: %s %s, want %s", thread, field, got, value)
					}
				}
			}
			t.Logf("engine of uid %d: CapBnd %s, Uid %s, %d threads", a.uid, statusField(t, engine, "CapBnd"),
				statusField(t, engine, "Uid"), len(threadsOf(t, engine)))
			if name == "user" && lab.root { // elsewhere we have the capability to
				closedToOthers(t, a, engine)
			}
			i.mustExec(t, probe(), "@good", remote4, "1")
		})
	}
}

// threadsOf returns a process's threads.
func threadsOf(t testing.TB, pid int) (tids []int) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || len(entries) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		tids = append(tids, tid)
	}
	return tids
}

// closedToOthers checks that processes of the same user cannot look into the engine.
// The kernel asks the same for these files as for ptrace(2) and pidfd_getfd(2).
func closedToOthers(t *testing.T, a account, engine int) {
	t.Helper()
	for _, command := range []string{
		"cat /proc/PID/environ", "cat /proc/PID/maps", "cat /proc/PID/mem", "cat /proc/PID/auxv",
		"ls /proc/PID/fd/", "ls /proc/PID/root/", "ls /proc/PID/cwd/", "readlink /proc/PID/exe", "readlink /proc/PID/ns/net",
	} {
		f := strings.Fields(strings.ReplaceAll(command, "PID", strconv.Itoa(engine)))
		if o := finish(a.command(t.Context(), f[0], f[1:]...)); o.code == 0 || o.out != "" {
			t.Errorf("%s: exit code %d, %d bytes", command, o.code, len(o.out))
		}
		// The command is one that can succeed.
		f = strings.Fields(strings.ReplaceAll(command, "PID", "self"))
		if o := finish(a.command(t.Context(), f[0], f[1:]...)); o.code != 0 && f[1] != "/proc/self/mem" {
			t.Errorf("%s on itself: exit code %d: %s", command, o.code, o.err)
		}
	}
}

// TestRunAsRoot: uid 0 gets the same network.
func TestRunAsRoot(t *testing.T) {
	a := newAccount(t, 0, 0)
	overKinds(t, func(t *testing.T, endpoint string) {
		a.mustRun(t, []string{"--endpoint", endpoint}, probe(), "@many", "2", "20", remote4, remote6)
	})
	if out := a.mustRun(t, nil, "id", "-u"); out != "0\n" {
		t.Errorf("id -u: %q", out)
	}
}

// TestSubordinateIDs: files may belong to others than root, and there are other
// users to become.
func TestSubordinateIDs(t *testing.T) {
	if !lab.subids {
		t.Skip("the user has no subordinate ids")
	}
	a := ordinary(t)
	out := a.mustRun(t, nil, "sh", "-c", `cd "$XDG_RUNTIME_DIR" && echo x >f && chown 5:5 f && stat -c %u:%g f && chown 0:0 f && rm f && su -s /bin/sh nobody -c "id -u"`)
	if out != "5:5\n65534\n" {
		t.Errorf("got %q, want 5:5 and 65534", out)
	}
	if out := a.mustRun(t, nil, "su", "-s", "/bin/sh", "nobody", "-c", probe()+" @fetch "+url("web.e2e.test")); out != greeting+"\n" {
		t.Errorf("as nobody: %q", out)
	}
}

// without runs postern where something of the machine is missing (mountsRole).
func (a account) without(t testing.TB, what string, args ...string) outcome {
	t.Helper()
	cmd := a.command(t.Context(), probe(), append([]string{"@mounts", what, strconv.Itoa(a.uid), strconv.Itoa(a.gid), lab.dir + "/postern"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	return finish(cmd)
}

// mountsRole: WHAT UID GID PROGRAM ARG... — takes something away in this mount
// namespace and goes on as the user.
func mountsRole(args []string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	var err error
	switch args[0] {
	case "tun":
		err = coverTUN(0)
	case "tun-closed":
		err = coverTUN(0o600)
	case "newuidmap":
		err = coverIDMap()
	default:
		err = fmt.Errorf("cannot take away %s", args[0])
	}
	if err != nil {
		return err
	}
	uid, err1 := strconv.Atoi(args[1])
	gid, err2 := strconv.Atoi(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if uid != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
			return err
		}
	}
	return syscall.Exec(args[3], args[3:], os.Environ())
}

// coverIDMap puts something that cannot be executed over newuidmap and newgidmap.
func coverIDMap() error {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
			if _, err := os.Stat(dir + "/" + name); err != nil {
				continue
			}
			if err := unix.Mount("/dev/null", dir+"/"+name, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("cover %s/%s: %w", dir, name, err)
			}
		}
	}
	return nil
}

// TestWithoutNewuidmap: without the helpers there is one id, said in one line.
func TestWithoutNewuidmap(t *testing.T) {
	if !lab.subids {
		t.Skip("the user has no subordinate ids to do without")
	}
	o := ordinary(t).without(t, "newuidmap", "run", "--", "sh", "-c", "cat /proc/self/uid_map && "+probe()+" @good "+remote4+" 1")
	if o.code != 0 || strings.Join(strings.Fields(lineOf(o.out, 0)), " ") != fmt.Sprintf("0 %d 1", lab.uid) {
		t.Errorf("exit code %d, map %q, said %s", o.code, o.out, o.err)
	}
	oneLine(t, o.err, "newuidmap", "single")
	o = ordinary(t).without(t, "newuidmap", "run", "--map", "subid", "--", "true")
	if o.code != 125 {
		t.Errorf("--map subid: exit code %d, want 125", o.code)
	}
	oneLine(t, o.err, "newuidmap")
}

// TestWithoutTUN: without a device for TAPs there is a packet socket, said in one line.
func TestWithoutTUN(t *testing.T) {
	cases := map[string]string{"tun": "no such file or directory"}
	if lab.root {
		cases["tun-closed"] = "permission denied"
	}
	for what, why := range cases {
		t.Run(what, func(t *testing.T) {
			a := ordinary(t)
			o := a.without(t, what, "run", "--", probe(), "@many", "2", "20", remote4, remote6)
			if o.code != 0 {
				t.Errorf("exit code %d: %s", o.code, o.err)
			}
			oneLine(t, o.err, "/dev/net/tun: "+why, "--endpoint=packet")
			o = a.without(t, what, "run", "--endpoint", "packet", "--", "true")
			if o.code != 0 || o.err != "" {
				t.Errorf("--endpoint packet: exit code %d, said %q", o.code, o.err)
			}
			o = a.without(t, what, "run", "--endpoint", "tap", "--", "true")
			if o.code != 125 {
				t.Errorf("--endpoint tap: exit code %d, want 125", o.code)
			}
			oneLine(t, o.err, "/dev/net/tun", why)
		})
	}
}

// oneLine wants a message of one line that holds all words.
func oneLine(t testing.TB, message string, words ...string) {
	t.Helper()
	if strings.Count(message, "\n") != 1 || !strings.HasPrefix(message, "postern: ") {
		t.Errorf("said %q, want one line from postern", message)
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("said %q, want %q in it", message, word)
		}
	}
	t.Log(strings.TrimSpace(message))
}

func lineOf(text string, n int) string {
	if lines := strings.Split(text, "\n"); n < len(lines) {
		return lines[n]
	}
	return ""
}

// unixRole: PATH — asks a control socket and prints the answer.
func unixRole(args []string) error {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		fmt.Println("dial:", errorName(err))
		return nil
	}
	defer c.Close()
	_, _ = c.Write([]byte("GET /v1/info HTTP/1.0\r\nHost: x\r\n\r\n")) // refusal may come first
	b := make([]byte, 4096)
	n, err := c.Read(b)
	fmt.Printf("answer: %d bytes, %v", n, err)
	return nil
}

// TestControlSocketIsOurs: another user does not get an answer, even where the
// modes of directory and socket let it in (A3), and the container has no way to it (A4).
func TestControlSocketIsOurs(t *testing.T) {
	if !lab.root {
		t.Skip("needs a second user, so root")
	}
	i := ordinary(t).start(t, "api")
	socket := i.dir() + "/api.sock"
	other := newAccount(t, lab.uid+1, lab.gid+1)
	ask := func(a account) string {
		o := finish(a.command(t.Context(), probe(), "@unix", socket))
		return o.out + o.err
	}
	if got := ask(i.account); !strings.HasPrefix(got, "answer: ") || strings.HasPrefix(got, "answer: 0 ") {
		t.Fatalf("the owner gets %q", got)
	}
	for n := range 20 {
		if got := ask(other); got != "dial: EACCES\n" {
			t.Fatalf("try %d: another user gets %q", n, got)
		}
	}
	for _, path := range []string{i.runtime, i.runtime + "/postern", i.dir()} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		if got := ask(other); !strings.HasPrefix(got, "answer: 0 ") {
			t.Fatalf("try %d with open modes: another user gets %q", n, got)
		}
	}
	i.mustStatus(t)
}

// TestNoListeners: an instance opens no door: no TCP or UDP socket waits on the
// host, and no abstract unix socket exists.
func TestNoListeners(t *testing.T) {
	ss := func() (lines []string) {
		for _, file := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
			b, err := os.ReadFile("/proc/self/net/" + file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				switch {
				case strings.HasPrefix(file, "tcp") && len(f) > 3 && f[3] == "0A": // TCP_LISTEN
					lines = append(lines, file+" "+f[1])
				case strings.HasPrefix(file, "udp") && len(f) > 3 && f[3] == "07": // unconnected
					lines = append(lines, file+" "+f[1])
				case file == "unix" && strings.HasPrefix(f[len(f)-1], "@"):
					lines = append(lines, file+" "+f[len(f)-1])
				}
			}
		}
		return lines
	}
	before := ss()
	if len(before) > 0 {
		t.Logf("sockets before: %v", before) // what a test before this one had may be about to go
	}
	i := ordinary(t).start(t, "quiet")
	i.mustExec(t, probe(), "@many", "2", "20", remote4, remote6)
	after := slices.DeleteFunc(ss(), func(s string) bool { return slices.Contains(before, s) })
	if len(after) > 0 {
		t.Errorf("sockets before %v, with an instance also %v", before, after)
	}
}
