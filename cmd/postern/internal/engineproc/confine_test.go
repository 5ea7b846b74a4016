package engineproc

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/seam"
)

// TestMain plays the engine when a test starts this program as one.
func TestMain(m *testing.M) {
	if os.Args[0] != Name {
		os.Exit(m.Run())
	}
	// A pipe for standard input asks for a report. Neither argument nor variable
	// would do: confine may execute us again and passes none on.
	if in, err := os.Readlink("/proc/self/fd/0"); err != nil || !strings.HasPrefix(in, "pipe:") {
		os.Exit(Main())
	}
	closeStrays()
	if err := confine(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	report()
}

// report prints what every thread may still do, and which descriptors are open.
func report() {
	done := make(chan struct{})
	for range 8 { // some threads to look at
		go func() { <-done }()
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
				fmt.Print(line)
			}
		}
	}
	names, _ := os.ReadDir("/proc/self/fd")
	for _, n := range names {
		if target, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			fmt.Println("fd", n.Name(), target)
		}
	}
	close(done)
}

// TestConfined starts an engine with leaked descriptors, as root with all
// capabilities where the test has them, and looks at every thread.
func TestConfined(t *testing.T) {
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = Name
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = make([]*os.File, 50)
	for i := range cmd.ExtraFiles {
		cmd.ExtraFiles[i] = leak
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if !strings.Contains(text, "NoNewPrivs:\t1\n") || strings.Contains(text, "NoNewPrivs:\t0\n") {
		t.Errorf("no_new_privs is not set on all threads:\n%s", text)
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		// Who has no capabilities cannot lower the bounding set, and need not.
		checked := name == "CapInh" || name == "CapPrm" || name == "CapEff" || name == "CapAmb" || name == "CapBnd" && os.Getuid() == 0
		if checked && value != "0000000000000000" {
			t.Errorf("%s is %s on some thread", name, value)
		}
		var fd int
		var target string
		if n, _ := fmt.Sscanf(line, "fd %d %s", &fd, &target); n == 2 && fd > seam.ControlFD && target == "/etc/passwd" {
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
