package engineproc

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutName is the argv[0] of a process that becomes a confined one where a system
// call is missing, as on an old kernel or in a container that bars it.
const withoutName = "postern-engine-without"

// startWithout bars a system call and executes this program as an engine. It returns
// only when that fails.
func startWithout(number string) error {
	nr, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	if err := onAllOrThis(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return err
	}
	f := filter{load(offsetCall)}
	f.on(uint32(nr), ret(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
	if err := append(f, ret(unix.SECCOMP_RET_ALLOW)).install(); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", []string{Name}, nil)
}

// onAllOrThis calls prctl on this thread and, where Go can, on the others.
func onAllOrThis(option, value uintptr) error {
	if onAllThreads(unix.SYS_PRCTL, option, value, 0) == nil {
		return nil
	}
	return onThisThread(unix.SYS_PRCTL, option, value, 0)
}

// TestMissing: without a means of the kernel's the engine goes on, says so and keeps
// the others; a means that is there and fails is an error of one line.
func TestMissing(t *testing.T) {
	if _, err := landlockABI(); err != nil || arch == 0 {
		t.Skipf("this machine has not got all means itself: %v", err)
	}
	for name, c := range map[string]struct {
		call   int
		says   string
		failed bool
	}{
		"Landlock":  {unix.SYS_LANDLOCK_CREATE_RULESET, "missing engine without Landlock: operation not permitted\n", false},
		"filter":    {unix.SYS_SECCOMP, "missing engine without a system call filter: operation not permitted\n", false},
		"restrict":  {unix.SYS_LANDLOCK_RESTRICT_SELF, "confine engine: bar files with Landlock: operation not permitted\n", true},
		"something": {unix.SYS_MEMBARRIER, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", strconv.Itoa(c.call))
			cmd.Args[0] = withoutName
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := in.Write([]byte("try create\n")); err != nil {
				t.Fatal(err)
			}
			b, err := cmd.CombinedOutput()
			text := string(b)
			if c.failed {
				if err == nil || text != c.says {
					t.Errorf("%v, said %q, want %q", err, text, c.says)
				}
				return
			}
			if err != nil || !strings.HasPrefix(text, c.says) || strings.Count(text, "missing") != strings.Count(c.says, "missing") {
				t.Errorf("%v, said %q, want %q", err, text, c.says)
			}
			if !strings.Contains(text, "errno 13:") {
				t.Errorf("a file can be made: %s", text)
			}
		})
	}
}
