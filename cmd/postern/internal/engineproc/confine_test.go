package engineproc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/seam"
)

// TestMain plays the engine when a test starts this program as one.
func TestMain(m *testing.M) {
	if os.Args[0] == withoutName {
		fmt.Println(startWithout(os.Args[1]))
		os.Exit(1)
	}
	if os.Args[0] != Name {
		os.Exit(m.Run())
	}
	// A pipe for standard input asks for a role. Neither argument nor variable would
	// do: confine may execute us again and passes none on.
	if in, err := os.Readlink("/proc/self/fd/0"); err != nil || !strings.HasPrefix(in, "pipe:") {
		os.Exit(Main())
	}
	closeStrays()
	missing, err := confine()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, what := range missing {
		fmt.Println("missing", what)
	}
	var role, arg string
	_, _ = fmt.Scanln(&role, &arg) // whoever wants no argument gives none
	if err := roles[role](arg); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// roles are what a confined process can be asked to do.
var roles = map[string]func(arg string) error{
	"wait":   waitRole,
	"files":  filesRole,
	"try":    tryRole,
	"every":  everyRole,
	"engine": engineRole,
}

// play starts a confined process in a role.
func play(t *testing.T, role, arg string) (cmd *exec.Cmd, out *bufio.Reader, in io.WriteCloser) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Args[0] = Name
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	cmd.ExtraFiles = make([]*os.File, 50)
	for i := range cmd.ExtraFiles {
		cmd.ExtraFiles[i] = leak
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(in, role, arg); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(stdout), in
}

// result plays a role to its end and returns what it printed.
func result(t *testing.T, role, arg string) (string, error) {
	t.Helper()
	cmd, out, in := play(t, role, arg)
	in.Close()
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), cmd.Wait()
}

// waitRole has some threads to look at until its input ends.
func waitRole(string) error {
	done := make(chan struct{})
	for range 8 {
		go func() {
			runtime.LockOSThread()
			<-done
		}()
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// TestConfined looks at every thread of a process that was started as root with all
// capabilities where the test has them.
func TestConfined(t *testing.T) {
	cmd, out, in := play(t, "wait", "")
	defer cmd.Wait()
	defer in.Close()
	for line := ""; line != "ready\n"; {
		var err error
		if line, err = out.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	want := map[string]string{"NoNewPrivs": "1"}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		want[set] = "0000000000000000"
	}
	if os.Getuid() == 0 {
		want["CapBnd"] = want["CapEff"] // who has no capabilities cannot lower it, and need not
	}
	if arch != 0 {
		want["Seccomp"] = "2"
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			if w, ok := want[name]; ok && value != w {
				t.Errorf("%s: %s is %s, want %s", task, name, value, w)
			}
		}
	}
}

// filesRole prints what is open.
func filesRole(string) error {
	for fd := range 128 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			fmt.Println("fd", fd, st.Dev, st.Ino)
		}
	}
	return nil
}

// TestStrayDescriptors: a confined process has not kept descriptors that it got by
// mistake.
func TestStrayDescriptors(t *testing.T) {
	var leak unix.Stat_t
	if err := unix.Stat("/etc/passwd", &leak); err != nil {
		t.Fatal(err)
	}
	text, err := result(t, "files", "")
	if err != nil || !strings.Contains(text, "fd 0 ") {
		t.Fatalf("%v: %s", err, text)
	}
	for line := range strings.Lines(text) {
		var fd int
		var dev, ino uint64
		_, _ = fmt.Sscanf(line, "fd %d %d %d", &fd, &dev, &ino) // other lines stay zero
		if fd > seam.ControlFD && dev == leak.Dev && ino == leak.Ino {
			t.Errorf("descriptor %d is open", fd)
		}
	}
}

// TestRefusesStranger: an engine that a user starts by hand says so and ends.
func TestRefusesStranger(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = Name
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(string(out), "started by postern itself") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestReportsBadConfig: the supervisor learns why an engine cannot work, and an
// engine whose supervisor goes away ends.
func TestReportsBadConfig(t *testing.T) {
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := seam.New(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = Name
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	defer cmd.Wait()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	config := &handoff.EngineConfig{Endpoint: handoff.TAP, MTU: 1500, Network4: netip.MustParsePrefix("10.0.2.0/24")}
	if err := conn.Send(config, null); err != nil {
		t.Fatal(err)
	}
	m, _, err := conn.Recv()
	if failed, ok := m.(*handoff.EngineFailed); err != nil || !ok || failed.Reason == "" || failed.Device {
		t.Errorf("an engine with /dev/null for a TAP reports %+v, %v", m, err)
	}
}

func TestEndsWithSupervisor(t *testing.T) {
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = Name
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ours.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("an engine that was never used ends with %v", err)
	}
}
