package slirpapi

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/netplan"
)

// step is one request of the comparison.
type step struct {
	request string
	// why says that the answers differ and why; theirs and ours are the answers then.
	// theirs "" is the end of slirp4netns by SIGSEGV.
	why, theirs, ours string
}

// TestSideBySide puts the same requests to the machine's slirp4netns and to ours, and
// compares the answers byte for byte. -v prints them.
func TestSideBySide(t *testing.T) {
	if os.Getenv(stageVariable) == stageInside {
		loopbackUp(t)
		compare(t)
		return
	}
	if _, err := exec.LookPath("slirp4netns"); err != nil {
		missing(t, "%v (Debian's package slirp4netns)", err)
	}
	t.Run("self", inside)
	if os.Getuid() == 0 {
		t.Run("user", asUser)
	}
}

// compare runs all steps: first with slirp4netns, then with ours on the same host.
func compare(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		missing(t, "%v: slirp4netns needs it", err)
	} else {
		_ = f.Close()
	}
	busy, err := net.Listen("tcp4", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	theirs := make([]string, len(steps))
	original := startOriginal(t)
	for i, s := range steps {
		theirs[i] = original.ask(t, s)
	}
	original.end()

	path := filepath.Join(t.TempDir(), "ours")
	registry := portdriver.New(portdriver.Config{V4: true})
	defer registry.Close()
	server, err := Listen(path, registryPorts{registry}, netplan.Default(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var table strings.Builder
	same, shape, differ := 0, 0, 0
	for i, s := range steps {
		ours := ask(t, path, s.request)
		verdict := judge(s, theirs[i], ours)
		switch verdict {
		case "equal":
			same++
		case "list":
			shape++
		default:
			differ++
		}
		fmt.Fprintf(&table, "%3d %-10s %s\n", i+1, verdict, shown(s.request))
		fmt.Fprintf(&table, "    slirp4netns  %s\n", shown(theirs[i]))
		if verdict != "equal" {
			fmt.Fprintf(&table, "    ours         %s\n", shown(ours))
		}
		if verdict == "different" {
			t.Errorf("%s\nslirp4netns %s\nours        %s\nwant        %q, %q (%s)", s.request, theirs[i], ours, s.theirs, s.ours, s.why)
		} else if s.why != "" {
			fmt.Fprintf(&table, "    because      %s\n", s.why)
		}
	}
	t.Logf("%s\n%d requests: %d answers equal, %d lists with one more shape, %d documented differences\n%s",
		version(t), len(steps), same, shape, differ, &table)
}

// judge compares two answers.
func judge(s step, theirs, ours string) string {
	entries, isList := strings.CutPrefix(theirs, `{"entries":`)
	switch {
	case s.why != "":
		if theirs == s.theirs && ours == s.ours && s.theirs != s.ours {
			return "documented"
		}
	case isList:
		entries = strings.TrimSuffix(entries, "}")
		if ours == `{"return":{"entries":`+entries+`},"entries":`+entries+`}` {
			return "list"
		}
	case theirs == ours && theirs != "":
		return "equal"
	}
	return "different"
}

// shown is a text for the table.
func shown(text string) string {
	if text == "" {
		return "(nothing)"
	}
	text = strings.Trim(fmt.Sprintf("%q", text), `"`)
	text = strings.ReplaceAll(text, `\"`, `"`)
	if len(text) > 180 {
		text = fmt.Sprintf("%s… (%d bytes)", text[:120], len(text))
	}
	return text
}

func version(t *testing.T) string {
	out, err := exec.Command("slirp4netns", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// registryPorts is the real registry, which binds real sockets; nobody serves them.
type registryPorts struct{ *portdriver.Registry }

func (p registryPorts) Add(_ context.Context, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	return p.AddAll(specs)
}

func (p registryPorts) Remove(_ context.Context, id int) error { return p.Registry.Remove(id) }

// original is a slirp4netns that runs.
type original struct {
	path string
	cmd  *exec.Cmd
	log  bytes.Buffer
}

// startOriginal starts slirp4netns for a network namespace of its own.
func startOriginal(t *testing.T) *original {
	t.Helper()
	o := &original{path: filepath.Join(t.TempDir(), "theirs")}
	t.Cleanup(o.end)
	o.start(t)
	return o
}

func (o *original) start(t *testing.T) {
	t.Helper()
	target := newNetNS(t)
	defer target.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	o.log.Reset()
	o.cmd = exec.Command("slirp4netns", "-c", "-r", "3", "--api-socket", o.path, "--netns-type=path", "/proc/self/fd/4", "tap0")
	o.cmd.ExtraFiles = []*os.File{tell, target}
	o.cmd.Stdout, o.cmd.Stderr = &o.log, &o.log
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig follows the thread; the test ends before it
	err = o.cmd.Start()
	_ = tell.Close()
	if err != nil {
		o.cmd = nil
		t.Fatal(err)
	}
	// Crashes are expected and leave nothing to examine.
	_ = unix.Prlimit(o.cmd.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_ = ready.SetReadDeadline(time.Now().Add(soon))
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		o.end()
		t.Fatalf("slirp4netns is not ready: %v\n%s", err, &o.log)
	}
}

// newNetNS makes a network namespace that lives as long as its file.
func newNetNS(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	return f
}

// ask puts a request. After one that crashes it, slirp4netns is started anew.
func (o *original) ask(t *testing.T, s step) string {
	t.Helper()
	got := ask(t, o.path, s.request)
	if s.why == "" || s.theirs != "" {
		return got
	}
	if got != "" {
		return got // judge will tell
	}
	err := o.cmd.Wait()
	if status, ok := o.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGSEGV {
		t.Errorf("%s: slirp4netns ended: %v, want SIGSEGV", s.request, err)
	}
	o.cmd = nil
	o.start(t)
	return ""
}

// end kills slirp4netns.
func (o *original) end() {
	if o.cmd != nil {
		_ = o.cmd.Process.Kill()
		_ = o.cmd.Wait()
		o.cmd = nil
	}
}
