package hostconf

import (
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/dns"
)

// settle is how long after the first event the file is read: writers often
// truncate first and write afterwards.
const settle = 20 * time.Millisecond

// Poll intervals: with inotify only as a safety net, without it as the only way.
const (
	pollWatched   = 5 * time.Second
	pollUnwatched = time.Second
)

// events are those after which a name in a directory may mean another content.
const events = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE |
	unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// Watcher reports changes of a resolver configuration. It owns two goroutines,
// which Close ends and awaits.
type Watcher struct {
	path    string
	last    dns.ResolvConf
	changes chan dns.ResolvConf
	notify  *os.File // inotify, nil if there is none to be had
	fd      int      // notify's descriptor, for follow
	watched []int    // watch descriptors in use
	dirty   chan struct{}
	stop    chan struct{}

	following, listening sync.WaitGroup
}

// Watch follows the file at path, whose content is known to be last.
func Watch(path string, last dns.ResolvConf) *Watcher {
	w := &Watcher{
		path:    path,
		last:    last,
		changes: make(chan dns.ResolvConf, 1),
		dirty:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	poll := pollUnwatched
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		w.notify, w.fd = os.NewFile(uintptr(fd), "inotify"), fd
		poll = pollWatched
		w.listening.Add(1)
		go w.listen()
	}
	w.rearm()
	w.mark() // the file may have changed since last was read
	w.following.Add(1)
	go w.follow(poll)
	return w
}

// Changes delivers the newest configuration after each change; one that was not
// fetched in time is replaced by its successor.
func (w *Watcher) Changes() <-chan dns.ResolvConf { return w.changes }

// Close ends the watcher. The descriptor is closed when follow no longer uses it.
func (w *Watcher) Close() {
	close(w.stop)
	w.following.Wait()
	if w.notify != nil {
		_ = w.notify.Close()
	}
	w.listening.Wait()
}

// listen turns events into marks until the descriptor is closed. What happened
// does not matter: follow looks for itself.
func (w *Watcher) listen() {
	defer w.listening.Done()
	buf := make([]byte, 4096)
	for {
		if _, err := w.notify.Read(buf); err != nil {
			return
		}
		w.mark()
	}
}

func (w *Watcher) mark() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// follow reads the file some time after a mark and at intervals. Marks that come
// in the meantime do not put the reading off, so a busy directory cannot.
func (w *Watcher) follow(poll time.Duration) {
	defer w.following.Done()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-w.stop:
			return
		case <-w.dirty:
			if settled == nil {
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			w.check()
		case <-ticker.C:
			w.check()
		}
	}
}

// check walks the path again, then reads the file: what changes later is an
// event of a directory that is watched by then.
func (w *Watcher) check() {
	w.rearm()
	conf, err := Read(w.path)
	if err != nil || reflect.DeepEqual(conf, w.last) {
		return // unreadable for now; the poll tries again
	}
	w.last = conf
	select {
	case <-w.changes: // not fetched, and out of date now
	default:
	}
	w.changes <- conf
}

// rearm watches the directories of the path as it leads now and forgets others.
// The path is walked again until the walk finds only directories that were
// watched before it began; a few rounds are enough, as the poll covers the rest.
func (w *Watcher) rearm() {
	if w.notify == nil {
		return
	}
	for range 3 {
		var now []int
		for _, dir := range watchedDirs(w.path) {
			// Watching a directory twice yields the same descriptor.
			if wd, err := unix.InotifyAddWatch(w.fd, dir, events); err == nil {
				now = append(now, wd)
			}
		}
		same := slices.Equal(now, w.watched)
		for _, wd := range w.watched {
			if !slices.Contains(now, wd) {
				_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // may be gone with its directory
			}
		}
		w.watched = now
		if same {
			return
		}
	}
}
