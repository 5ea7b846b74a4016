package rawfork

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// countFDs is how many descriptors we have open.
func countFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// children are our children's pids, zombies included.
func children(t *testing.T) []string {
	t.Helper()
	var all []string
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

// openNull is a script that opens /dev/null and sends the descriptor.
func openNull() *Script {
	var s Script
	d := NewDescriptors(1)
	s.Add(Step{
		What: "open /dev/null", Nr: unix.SYS_OPENAT, Poke: d.Next(),
		Args: [6]Arg{Int(unix.AT_FDCWD), s.Path("/dev/null"), Int(unix.O_RDWR)},
	})
	s.Send(d)
	return &s
}

// run forks s and returns what the child sent and reported.
func run(s *Script) ([]*os.File, error) {
	c, err := s.Fork(0)
	if err != nil {
		return nil, err
	}
	files, err := c.Result(context.Background())
	return files, errors.Join(err, c.Finish())
}

// garbage allocates until stop is closed, so that the collector runs during forks.
func garbage(stop <-chan struct{}) {
	var keep [64][]byte
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
			keep[i%len(keep)] = make([]byte, 64<<10)
			if i%256 == 0 {
				runtime.GC()
			}
		}
	}
}

func TestForksLeaveNothingBehind(t *testing.T) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer func() { close(stop); wg.Wait() }()
	wg.Go(func() { garbage(stop) })
	if _, err := run(openNull()); err != nil {
		t.Fatal(err) // the first fork also sets the poller up
	}
	before := countFDs(t)
	var forks sync.WaitGroup
	for range 4 {
		forks.Go(func() {
			for range 50 {
				files, err := run(openNull())
				if err != nil || len(files) != 1 {
					t.Errorf("%d descriptors, %v", len(files), err)
				}
				CloseAll(files)
			}
		})
	}
	forks.Wait()
	if left := children(t); len(left) != 0 {
		t.Errorf("children left: %v", left)
	}
	// One more: the poller of this runtime may have been created in between.
	if after := countFDs(t); after > before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestFailedStepIsNamed(t *testing.T) {
	var s Script
	s.Call("open the missing file", unix.SYS_OPENAT, Int(unix.AT_FDCWD), s.Path("/nonexistent"), Int(0))
	s.Call("never", unix.SYS_GETPID)
	_, err := run(&s)
	if !errors.Is(err, unix.ENOENT) {
		t.Fatalf("error %v, want ENOENT", err)
	}
	var step *StepError
	if !errors.As(err, &step) || step.What != "open the missing file" {
		t.Errorf("step %+v", step)
	}
}

func TestJumps(t *testing.T) {
	for _, tc := range []struct {
		name string
		path string
		want string
	}{
		{"tolerated errno jumps", "/nonexistent", "fallback"},
		{"success goes on", "/dev/null", "main"},
	} {
		var s Script
		fallback := s.NewLabel()
		st := Step{What: "open", Nr: unix.SYS_OPENAT, Failed: fallback}
		st.Args = [6]Arg{Int(unix.AT_FDCWD), s.Path(tc.path)}
		st.Ignore[0] = unix.ENOENT
		s.Add(st)
		s.Call("main", unix.SYS_CLOSE, Int(-1))
		s.Place(fallback)
		s.Call("fallback", unix.SYS_CLOSE, Int(-1))
		_, err := run(&s)
		var step *StepError
		if !errors.As(err, &step) || step.What != tc.want || !errors.Is(err, unix.EBADF) {
			t.Errorf("%s: %v, want step %q", tc.name, err, tc.want)
		}
	}
}

// A result that is not 0 jumps; registers carry results between steps.
func TestForkInsideAndRegisters(t *testing.T) {
	var s Script
	parent := s.NewLabel()
	pid := s.NewReg()
	s.Add(Step{
		What: "fork", Nr: unix.SYS_CLONE, Store: pid, NonZero: parent,
		Args: [6]Arg{Int(int(unix.SIGCHLD))},
	})
	s.Exit(7)
	s.Place(parent)
	status := new(int32)
	s.Call("wait", unix.SYS_WAIT4, pid.Arg(), Pin(&s, status), Int(0), Int(0))
	s.Call("end", unix.SYS_CLOSE, pid.Arg()) // a pid is no open descriptor here
	_, err := run(&s)
	var step *StepError
	if !errors.As(err, &step) || step.What != "end" {
		t.Errorf("got %v, want the step after wait4 of the inner child", err)
	}
}

func TestKilledChildIsAnError(t *testing.T) {
	var s Script
	s.Wait()
	c, err := s.Fork(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(c.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Result(context.Background()); err != nil {
		t.Errorf("result: %v", err)
	}
	if err := c.Finish(); !errors.Is(err, ErrChildDied) {
		t.Errorf("finish: %v, want ErrChildDied", err)
	}
}

func TestResultEndsWithContext(t *testing.T) {
	var s Script
	s.Wait()
	c, err := s.Fork(0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Result(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("result: %v", err)
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	if left := children(t); len(left) != 0 {
		t.Errorf("children left: %v", left)
	}
}

// start executes e and returns the process.
func start(t *testing.T, e Exec) *Process {
	t.Helper()
	p, err := tryStart(e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func tryStart(e Exec) (*Process, error) {
	var s Script
	spare, err := s.AddExec(e)
	if err != nil {
		return nil, err
	}
	defer CloseAll(spare)
	c, err := s.Fork(0)
	if err != nil {
		return nil, err
	}
	if _, err := c.Result(context.Background()); err != nil {
		return nil, errors.Join(err, c.Kill())
	}
	return c.Exec()
}

func TestExecDescriptorsEnvironmentAndStatus(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Descriptor 1 is the pipe and so is 4; the others are /dev/null.
	p := start(t, Exec{
		Path:  "/bin/sh",
		Argv:  []string{"sh", "-c", `echo "$X"; pwd >&4; ls /proc/self/fd; exit 42`},
		Env:   []string{"X=value", "PATH=/usr/bin:/bin"},
		Files: []*os.File{nil, w, nil, nil, w},
		Dir:   "/usr",
	})
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	// 5 is the directory that ls reads.
	if want := "value\n/usr\n0\n1\n2\n3\n4\n5\n"; string(out) != want {
		t.Errorf("output %q, want %q", out, want)
	}
	status, err := p.Wait()
	if err != nil || status.ExitStatus() != 42 {
		t.Errorf("status %v, %v", status, err)
	}
	if again, err := p.Wait(); again != status || err != nil {
		t.Errorf("second Wait: %v, %v", again, err)
	}
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestExecFailure(t *testing.T) {
	for _, tc := range []struct {
		exec Exec
		want error
	}{
		{Exec{Path: "/nonexistent"}, unix.ENOENT},
		{Exec{Path: "/etc/passwd"}, unix.EACCES},
		{Exec{Path: "/bin/true", Dir: "/nonexistent"}, unix.ENOENT},
		{Exec{Path: ""}, unix.ENOENT},
		{Exec{Path: "/bin/true", Env: []string{"A=\x00"}}, unix.EINVAL},
	} {
		before := countFDs(t)
		if _, err := tryStart(tc.exec); !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.exec, err, tc.want)
		}
		if after := countFDs(t); after > before {
			t.Errorf("%+v: %d descriptors open, %d before", tc.exec, after, before)
		}
	}
}

func TestCloseKillsAndFrees(t *testing.T) {
	if _, err := start(t, Exec{Path: "/bin/true"}).Wait(); err != nil { // sets the poller up
		t.Fatal(err)
	}
	before := countFDs(t)
	for range 20 {
		p, err := tryStart(Exec{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}})
		if err != nil {
			t.Fatal(err)
		}
		waited := make(chan string, 1)
		go func() {
			status, err := p.Wait()
			waited <- fmt.Sprint(status.Signal(), err)
		}()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if got := <-waited; got != "killed<nil>" && got != "killed <nil>" {
			t.Errorf("waiter got %s", got)
		}
		if err := p.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	if after := countFDs(t); after > before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	if left := children(t); len(left) != 0 {
		t.Errorf("children left: %v", left)
	}
}

// The thread that forked must outlive the goroutine that asked: a locked thread
// that is thrown away would otherwise take the child with it.
func TestPdeathsigSurvivesTheCallersThread(t *testing.T) {
	result := make(chan *Process)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		p, err := tryStart(Exec{Path: "/bin/cat", Pdeathsig: unix.SIGKILL})
		if err != nil {
			t.Error(err)
		}
		result <- p
	}()
	p := <-result
	if p == nil {
		return
	}
	defer p.Close()
	if got, err := p.Wait(); err != nil || got.Signaled() {
		t.Errorf("cat on /dev/null ended with %v, %v", got, err)
	}
}

// Go raises its own soft limit; the program must get the one that we were started
// with.
func TestNofileIsRestored(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "ulimit -Sn 321 && exec /proc/"+fmt.Sprint(os.Getpid())+"/exe")
	cmd.Env = append(os.Environ(), nofileRole+"=1", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "321\n" {
		t.Errorf("the program's soft limit is %q, %v; want 321", out, err)
	}
}

const nofileRole = "POSTERN_RAWFORK_NOFILE"

func TestMain(m *testing.M) {
	if os.Getenv(nofileRole) == "" {
		os.Exit(m.Run())
	}
	p, err := tryStart(Exec{Path: "/bin/sh", Argv: []string{"sh", "-c", "ulimit -Sn"}, Files: []*os.File{nil, os.Stdout}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p.Wait()
	p.Close()
	os.Exit(0)
}
