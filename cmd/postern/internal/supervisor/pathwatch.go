package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pathEvery is how often a namespace's path is looked at. An unmounted bind mount
// and the end of a process give no event, so looking is the only way; with it an
// engine is gone well within half a second of its namespace.
const pathEvery = 200 * time.Millisecond

// pathEvents are what can take a name away from a file, or give it to another
// (inotify(7)): unlink and rename, of the file or of its directory.
const pathEvents = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// pathWatch waits until a path no longer leads to the file that it led to. It owns
// two goroutines, which close ends and awaits.
type pathWatch struct {
	path   string
	was    unix.Stat_t
	notify *os.File      // inotify; nil if there is none to be had
	hints  chan struct{} // something happened in the directory
	gone   chan struct{} // closed when the path leads elsewhere
	stop   chan struct{}
	done   sync.WaitGroup
}

// watchPath starts watching; every is pathEvery but for tests.
func watchPath(path string, every time.Duration) (*pathWatch, error) {
	w := &pathWatch{
		path: path, notify: notifyOf(path),
		hints: make(chan struct{}, 1), gone: make(chan struct{}), stop: make(chan struct{}),
	}
	// What happens after this is an event of a directory that is watched already.
	if err := unix.Stat(path, &w.was); err != nil {
		if w.notify != nil {
			_ = w.notify.Close()
		}
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	if w.notify != nil {
		w.done.Add(1)
		go w.listen()
	}
	w.done.Add(1)
	go w.run(every)
	return w, nil
}

// notifyOf watches the directory of a path and, where the path is a symbolic link,
// that of what it leads to. Links further up are the clock's business.
func notifyOf(path string) *os.File {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil // no more instances for this user
	}
	dirs := []string{filepath.Dir(path)}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		dirs = append(dirs, filepath.Dir(target))
	}
	for _, dir := range dirs {
		// A directory that cannot be watched leaves the clock.
		_, _ = unix.InotifyAddWatch(fd, dir, pathEvents)
	}
	return os.NewFile(uintptr(fd), "inotify")
}

// listen turns events into hints until the descriptor is closed. What happened
// does not matter: run looks for itself.
func (w *pathWatch) listen() {
	defer w.done.Done()
	buf := make([]byte, 4096)
	for {
		if _, err := w.notify.Read(buf); err != nil {
			return
		}
		select {
		case w.hints <- struct{}{}:
		default:
		}
	}
}

// run looks after every hint and at intervals.
func (w *pathWatch) run(every time.Duration) {
	defer w.done.Done()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-w.hints:
		case <-t.C:
		}
		var now unix.Stat_t
		if unix.Stat(w.path, &now) != nil || now.Dev != w.was.Dev || now.Ino != w.was.Ino {
			close(w.gone)
			return
		}
	}
}

func (w *pathWatch) close() {
	close(w.stop)
	if w.notify != nil {
		_ = w.notify.Close()
	}
	w.done.Wait()
}
