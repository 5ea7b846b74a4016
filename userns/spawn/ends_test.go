package spawn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
	"github.com/postern-net/postern/userns/internal/usertest"
)

// parent starts an inhabitant that never ends and prints its process id. With a
// stand-in for newuidmap, that program prints it and never ends either.
func parent(newuidmap string) int {
	maps, err := PlanMaps(context.Background(), Auto)
	if err == nil {
		if newuidmap != "" {
			maps.NewUIDMap = newuidmap
		}
		var p *Process
		p, err = Start(context.Background(), Config{
			Maps: maps, Argv: []string{"inhabitant", "block"}, Files: []*os.File{os.Stdin}, Pdeathsig: unix.SIGKILL,
		})
		if err == nil {
			fmt.Println(p.PID)
			p.Wait()
		}
	}
	fmt.Println(err)
	return 1
}

// A parent that is killed takes its child along, at whatever point it is.
func TestKilledParentLeavesNothing(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	dir := t.TempDir()
	note := filepath.Join(dir, "pid")
	hanging := filepath.Join(dir, "newuidmap")
	script := "#!/bin/sh\necho $1 >" + note + ".new && mv " + note + ".new " + note + "\nexec sleep 5\n"
	if err := os.WriteFile(hanging, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, standin := range []string{"", hanging} {
		in, keep, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{"parent", standin}
		cmd.Stdin = in
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		var text string
		if standin == "" {
			text, err = bufio.NewReader(out).ReadString('\n')
		} else {
			text, err = eventually(note)
		}
		pid, perr := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || perr != nil {
			t.Fatalf("child's process id: %v, %v", err, perr)
		}
		cmd.Process.Kill()
		cmd.Wait()
		if !gone(pid) {
			t.Errorf("newuidmap %q: child %d outlives its killed parent", standin, pid)
		}
		keep.Close()
	}
}

// eventually reads a file as soon as it is there.
func eventually(path string) (string, error) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, err := os.ReadFile(path)
		if err == nil || time.Now().After(deadline) {
			return string(b), err
		}
		time.Sleep(time.Millisecond)
	}
}

// gone waits until a process has ended; whose child it is by then may differ, so a
// zombie counts as ended.
func gone(pid int) bool {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return true
		}
		if _, after, ok := strings.Cut(string(b), ") "); ok && strings.HasPrefix(after, "Z") {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// A child that is killed between clone and the id maps must be noticed: its number
// may be another process's by the time newuidmap looks.
func TestChildKilledBeforeItsMaps(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps := mustPlan(t, Auto)
	maps.NewUIDMap = filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(maps.NewUIDMap, []byte("#!/bin/sh\nkill -9 $1\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	maps.NewGIDMap = "/bin/true"
	before := openFiles(t)
	for range 50 {
		p, err := Start(context.Background(), Config{Maps: maps, Argv: []string{"inhabitant"}})
		if err == nil {
			// It took the go-ahead while dying: the program never ran.
			status, werr := p.Wait()
			if werr != nil || status.Signal() != unix.SIGKILL {
				t.Fatalf("status %v, %v", status, werr)
			}
			p.Close()
			continue
		}
		if (!errors.Is(err, unix.ESRCH) && !errors.Is(err, rawfork.ErrChildDied)) || errors.Is(err, ErrMapping) {
			t.Fatalf("start with a killed child: %v, want its end", err)
		}
	}
	if after := openFiles(t); after > before+2 {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestStartsLeaveNothingBehind(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	maps := mustPlan(t, Single)
	one := func() {
		p, err := Start(context.Background(), Config{Maps: maps, Argv: []string{"inhabitant"}})
		if err != nil {
			t.Fatal(err)
		}
		if status, err := p.Wait(); err != nil || status.ExitStatus() != 0 {
			t.Errorf("status %v, %v", status, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := Start(context.Background(), Config{Maps: maps, Path: "/nonexistent"}); err == nil {
			t.Error("executed what is not there")
		}
	}
	one() // sets Go's poller up
	before := openFiles(t)
	for range 30 {
		one()
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
