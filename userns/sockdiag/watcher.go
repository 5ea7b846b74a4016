package sockdiag

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How often to ask for births; see the package comment.
const (
	// soonest is the pause after a change. Each further one without a change is
	// twice as long, up to latest.
	soonest = 250 * time.Millisecond
	latest  = time.Second
	// settle is the least pause between two dumps, whatever dies meanwhile.
	settle = 20 * time.Millisecond
)

// eventSize is more than an event message has: a header, inet_diag_msg and a few
// small attributes.
const eventSize = 8 << 10

// Config is what a Watcher needs.
type Config struct {
	// Dump and Events are two NETLINK_SOCK_DIAG sockets of the network namespace,
	// nonblocking. Nothing was done with Events before. The Watcher takes them over.
	Dump, Events *os.File
	// Changed is called with the sockets that wait for clients: at first, and
	// whenever they are others than before. It is called by one goroutine at a time;
	// while it runs, nothing is looked for.
	Changed func([]Socket)
	// Logger gets what goes wrong, once; nil is silence.
	Logger *slog.Logger
}

// Watcher watches the sockets of a network namespace until Close.
type Watcher struct {
	cfg    Config
	log    *slog.Logger
	closed atomic.Bool
	ended  chan struct{} // closed by run
	stats  stats

	// The rest is run's.
	known  []Socket
	told   bool // Changed has been called
	failed bool // the last dump failed, and that was said
	excess bool // there are more than MaxSockets, and that was said
}

type stats struct {
	dumps, deaths, lost, more atomic.Uint64
}

// Stats is what a Watcher has counted.
type Stats struct {
	Dumps  uint64 // times that the kernel was asked for all sockets
	Deaths uint64 // ends of sockets that it told of by itself
	Lost   uint64 // times that some of those were lost (ENOBUFS)
	More   uint64 // sockets beyond MaxSockets at the last dump
}

// Watch starts a Watcher. On an error the two sockets have been closed.
func Watch(cfg Config) (*Watcher, error) {
	w := &Watcher{cfg: cfg, log: cfg.Logger, ended: make(chan struct{})}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	err := subscribe(cfg.Events)
	if err == nil {
		// Fails for a descriptor that Go's poller does not have.
		if err = cfg.Events.SetReadDeadline(time.Time{}); err != nil {
			err = fmt.Errorf("wait for the ends of sockets: %w", err)
		}
	}
	if err != nil {
		cfg.Dump.Close()
		cfg.Events.Close()
		return nil, err
	}
	go w.run()
	return w, nil
}

// Close ends the Watcher and waits for a call of Changed that is under way.
func (w *Watcher) Close() {
	w.closed.Store(true)
	w.cfg.Events.Close()
	<-w.ended
}

// Stats returns the counters.
func (w *Watcher) Stats() Stats {
	return Stats{w.stats.dumps.Load(), w.stats.deaths.Load(), w.stats.lost.Load(), w.stats.more.Load()}
}

// run is the Watcher's goroutine. Close ends it by closing the events socket.
func (w *Watcher) run() {
	defer close(w.ended)
	defer w.cfg.Dump.Close()
	rc, err := w.cfg.Events.SyscallConn()
	if err != nil {
		return // closed already
	}
	buf := make([]byte, eventSize)
	for pause := soonest; !w.closed.Load(); {
		asked := time.Now()
		if w.look() {
			pause = soonest
		}
		died, err := w.wait(rc.Read, buf, asked.Add(pause))
		if err != nil {
			return
		}
		if died {
			if err := w.settle(rc.Read, asked); err != nil {
				return
			}
		}
		pause = next(pause, died)
	}
}

// next is the pause after this one.
func next(pause time.Duration, died bool) time.Duration {
	if died {
		return soonest
	}
	return min(2*pause, latest)
}

// settle waits until the least pause since the last dump is over. The error is the
// end.
func (w *Watcher) settle(read func(func(uintptr) bool) error, asked time.Time) error {
	if err := w.cfg.Events.SetReadDeadline(asked.Add(settle)); err != nil {
		return err
	}
	if err := read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// look dumps, tells if something has changed, and reports that.
func (w *Watcher) look() (changed bool) {
	w.stats.dumps.Add(1)
	now, more, err := Dump(w.cfg.Dump)
	if err != nil {
		if !w.failed {
			w.log.Warn("the container's listeners cannot be seen", "cause", err)
		}
		w.failed = true
		return false
	}
	w.failed = false
	w.stats.more.Store(uint64(more))
	if more > 0 && !w.excess {
		w.excess = true
		w.log.Warn("the container has too many listeners to watch all", "limit", MaxSockets, "more", more)
	}
	if w.told && slices.Equal(w.known, now) {
		return false
	}
	w.known, w.told = now, true
	w.cfg.Changed(slices.Clone(now))
	return true
}

// wait returns at the deadline, or earlier with true when a socket that we know may
// have died. The error is the end.
func (w *Watcher) wait(read func(func(uintptr) bool) error, buf []byte, until time.Time) (died bool, err error) {
	if err := w.cfg.Events.SetReadDeadline(until); err != nil {
		return false, err
	}
	err = read(func(fd uintptr) bool {
		for !died && time.Now().Before(until) {
			n, errno := receive(int(fd), buf)
			switch {
			case errno == unix.EAGAIN:
				return false
			case errno == unix.ENOBUFS:
				w.stats.lost.Add(1)
				died = true
			case errno == nil:
				died = w.ours(parseDeaths(buf[:n]))
			}
		}
		return true
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return died, err
}

// ours reports whether one of the dead has a port of a socket that we know.
func (w *Watcher) ours(dead []death) bool {
	w.stats.deaths.Add(uint64(len(dead)))
	for _, d := range dead {
		if slices.ContainsFunc(w.known, func(s Socket) bool { return s.Bound.Port() == d.port }) {
			return true
		}
	}
	return false
}

// receive takes one datagram. One that is not from the kernel, whose port is 0, and
// one cut short count as empty.
func receive(fd int, buf []byte) (int, error) {
	for {
		n, _, flags, from, err := unix.Recvmsg(fd, buf, nil, unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 || flags&unix.MSG_TRUNC != 0 {
			return 0, nil
		}
		return n, nil
	}
}
