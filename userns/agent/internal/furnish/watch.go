package furnish

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watcher puts covers back that the host's changes have removed. It owns one
// goroutine, which close ends and awaits.
type watcher struct {
	covers []*cover
	table  *os.File // /proc/self/mountinfo
	stop   *os.File // closed by the goroutine's owner to end it
	wake   *os.File // the other end of stop
	done   sync.WaitGroup
}

// watchCovers starts a watcher.
func watchCovers(covers []*cover) (*watcher, error) {
	// Not os.Open: it would register the file with Go's poller, and whoever polls
	// the open file first takes the event away from the others.
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("watch mounts: %w", err)
	}
	wake, stop, err := os.Pipe()
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch mounts: %w", err)
	}
	w := &watcher{covers: covers, table: os.NewFile(uintptr(fd), "mountinfo"), stop: stop, wake: wake}
	w.done.Add(1)
	go w.run()
	return w, nil
}

func (w *watcher) close() {
	_ = w.stop.Close()
	w.done.Wait()
	_ = w.table.Close()
	_ = w.wake.Close()
	for _, c := range w.covers {
		_ = c.source.Close()
	}
}

// run waits for changes of the mount table, which poll(2) reports as POLLERR and
// POLLPRI (proc_pid_mountinfo(5)), and for the end of the pipe. It blocks in
// poll on a thread of its own: Go's poller is edge-triggered and knows no
// POLLPRI.
func (w *watcher) run() {
	defer w.done.Done()
	fds := []unix.PollFd{
		{Fd: int32(w.table.Fd()), Events: unix.POLLPRI},
		{Fd: int32(w.wake.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents != 0 {
			w.restore()
		}
	}
}

// restore puts every cover back that is not in place. A failure is not retried:
// the next change of the mount table, or the file's return, is the next chance.
func (w *watcher) restore() {
	for _, c := range w.covers {
		if !c.inPlace() {
			_ = c.put()
		}
	}
}
