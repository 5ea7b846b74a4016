package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// How a test comes to stand on a host of its own:
//
//	go test        builds the program, starts itself in new namespaces
//	stage "init"   process 1 of them: mounts /proc, reaps
//	stage "host"   the tests
//
// The test binary is also the program for what tests need inside a container;
// then its first argument is a role that begins with "@" (roles_test.go).
const (
	stageVariable = "POSTERN_E2E_STAGE"
	dirVariable   = "POSTERN_E2E_DIR"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "@") {
		os.Exit(playRole(os.Args[1], os.Args[2:]))
	}
	if os.Args[0] == kitUnshare {
		os.Exit(unshareForKit())
	}
	var code int
	var err error
	switch os.Getenv(stageVariable) {
	case "":
		code, err = outside()
	case "init":
		code, err = initStage()
	case "host":
		code, err = hostStage(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// inCI reports whether what is missing is a failure.
func inCI() bool { return os.Getenv("CI") == "true" }

// outside builds the programs and runs the tests in new namespaces.
func outside() (code int, err error) {
	dir, err := os.MkdirTemp("/tmp", "pn-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), build(dir), copyProgram("/proc/self/exe", dir+"/probe")); err != nil {
		return 0, err
	}
	// A signal ends the namespaces, and with them every process in them.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	cmd := exec.CommandContext(ctx, dir+"/probe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageVariable+"=init", dirVariable+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL,
	}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // the parent-death signal follows the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		if inCI() {
			return 0, fmt.Errorf("make namespaces for the tests: %w", err)
		}
		fmt.Fprintf(os.Stderr, "e2e: skipped: make namespaces for the tests: %v\n", err)
		return 0, nil
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() <= 0 {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// build makes dir/postern.
func build(dir string) error {
	if program := os.Getenv("POSTERN_E2E_PROGRAM"); program != "" {
		return copyProgram(program, dir+"/postern")
	}
	args := []string{"build", "-o", dir + "/postern"}
	cgo := "0"
	if os.Getenv("POSTERN_E2E_RACE") != "" {
		args, cgo = append(args, "-race"), "1"
	}
	cmd := exec.Command("go", append(args, "github.com/postern-net/postern/cmd/postern")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// copyProgram copies a program to where an ordinary user may execute it.
func copyProgram(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(to, b, 0o755), os.Chmod(to, 0o755))
}

// initStage is process 1 of the PID namespace. Its end is every process's end.
func initStage() (code int, err error) {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.Setenv(stageVariable, "host"); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start the tests: %w", err)
	}
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the tests: %w", err)
		case got == pid && status.Signaled():
			return 0, fmt.Errorf("the tests were ended by signal %v", status.Signal())
		case got == pid:
			return status.ExitStatus(), nil
		}
	}
}

// lab is where the tests run.
var lab struct {
	// dir holds the programs "postern" and "probe", and runtime directories.
	dir string
	// uid and gid are the ordinary user's; subids says that it has subordinate ids.
	uid, gid int
	user     string
	home     string
	subids   bool
	// root says that the stage belongs to the machine's root.
	root   bool
	remote *netns
	srv    *servers
}

// hostStage arranges the host and runs the tests.
func hostStage(m *testing.M) (code int, err error) {
	lab.dir = os.Getenv(dirVariable)
	if err := errors.Join(os.Unsetenv(stageVariable), os.Unsetenv(dirVariable), os.Unsetenv("XDG_RUNTIME_DIR")); err != nil {
		return 0, err
	}
	if err := whoAmI(); err != nil {
		return 0, err
	}
	if err := arrange(); err != nil {
		return 0, err
	}
	if code = m.Run(); code != 0 {
		return code, nil
	}
	if left := leftOver(); left != "" {
		return 0, fmt.Errorf("left after all tests:\n%s", left)
	}
	return 0, nil
}

// whoAmI finds the user that runs postern.
func whoAmI() error {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	// The initial user namespace maps everything to itself (user_namespaces(7)).
	lab.root = strings.Join(strings.Fields(string(uidMap)), " ") == "0 0 4294967295"
	lab.user, lab.home = "root", "/"
	if !lab.root {
		return nil
	}
	name := os.Getenv("POSTERN_TEST_USER")
	if name == "" {
		name = "ci"
	}
	u, err := user.Lookup(name)
	switch {
	case err != nil && inCI():
		return fmt.Errorf("%w (sh .ci/setup makes it; POSTERN_TEST_USER names another)", err)
	case err != nil:
		lab.user, lab.uid, lab.gid = "nobody", 65534, 65534
		return nil
	}
	lab.user, lab.home = name, u.HomeDir
	lab.uid, _ = strconv.Atoi(u.Uid)
	lab.gid, _ = strconv.Atoi(u.Gid)
	lab.subids = hasLine("/etc/subuid", name+":") && hasLine("/etc/subgid", name+":")
	if !lab.subids && inCI() {
		return fmt.Errorf("user %s has no subordinate ids (sh .ci/setup adds them)", name)
	}
	return nil
}

func hasLine(file, prefix string) bool {
	b, _ := os.ReadFile(file)
	return strings.Contains("\n"+string(b), "\n"+prefix)
}

// leftOver lists what the tests should have ended or removed.
func leftOver() string {
	var left []string
	_ = eventually(patience, func() error {
		left = nil
		for _, p := range processes() {
			if p.pid != 1 && p.pid != os.Getpid() {
				left = append(left, fmt.Sprintf("process %d: %s", p.pid, p.command))
			}
		}
		return failIf(len(left) > 0, "processes")
	})
	files, _ := filepath.Glob(lab.dir + "/run*")
	return strings.Join(append(left, files...), "\n")
}

// sources runs recordSources once.
var sources sync.Once

// recordSources makes the go command's test cache depend on the program's sources,
// which the test binary does not import: it records the files that a test looks at.
func recordSources(t testing.TB) {
	t.Helper()
	err := filepath.WalkDir("../../../..", func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
