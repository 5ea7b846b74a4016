// Package reap kills and reaps whatever a command left behind.
//
// The caller is a child subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)) or pid 1 of
// its pid namespace, so every orphan below it becomes its child. Only children
// are signalled: a child's id cannot be reused before its parent has waited for
// it, while the id of a grandchild can at any moment. A tree of depth n is gone
// after n rounds, because each round's dead hand their children up.
package reap

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// round is how long one round waits for the killed to become waitable. A killed
// process normally ends within microseconds; the figure only bounds polling.
const round = 2 * time.Millisecond

// Subreaper makes the calling process adopt the orphans among its descendants.
func Subreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become child subreaper: %w", err)
	}
	return nil
}

// Children returns the ids of the calling process's children, zombies included.
// It reads /proc/self/task/TID/children (proc(5), CONFIG_PROC_CHILDREN) of every
// thread, because an orphan is adopted by a thread, not by the process.
func Children() ([]int, error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("list own threads: %w", err)
	}
	var pids []int
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			if errors.Is(err, os.ErrNotExist) && !kernelListsChildren() {
				return nil, fmt.Errorf("list children: %w (kernel without CONFIG_PROC_CHILDREN)", err)
			}
			continue // the thread has ended meanwhile
		}
		for _, word := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

func kernelListsChildren() bool {
	_, err := os.Stat("/proc/thread-self/children")
	return err == nil
}

// KillAll kills and reaps children, and what becomes a child by that, until none
// is left or the deadline has passed; then it says how many are left.
func KillAll(deadline time.Time) error {
	for {
		reapAll()
		pids, err := Children()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			// A failure means that it is a zombie already, or not ours to kill;
			// the deadline covers the latter.
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes could not be killed, the first is %d", len(pids), pids[0])
		}
		waitOne()
	}
}

// reapAll waits for every child that has ended.
func reapAll() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

// waitOne waits up to one round for a child to end without reaping it.
func waitOne() {
	end := time.Now().Add(round)
	timer := time.NewTicker(round / 10)
	defer timer.Stop()
	for time.Now().Before(end) {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != nil || info.Signo != 0 {
			return
		}
		<-timer.C
	}
}
