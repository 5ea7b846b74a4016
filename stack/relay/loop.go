package relay

import (
	"encoding/binary"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Loop is one thread that waits for descriptors with epoll(7) and serves them. Do,
// Flows and nothing else may be called from elsewhere; all other methods, those of
// Watch, Timer and Flow too, belong on the loop's thread: in a function given to
// Do, Watch, After or Splice. Such a function must not block.
type Loop struct {
	shared *shared
	epoll  int
	wakeup int           // eventfd that Do writes to
	ended  chan struct{} // closed by run when it ends
	flows  atomic.Int64

	mu     sync.Mutex // guards the fields below
	orders []func()   // from Do
	woken  bool       // an event is on its way
	closed bool

	// The rest is the thread's own.
	events  [maxEvents]unix.EpollEvent
	spare   []func() // the slice that orders becomes next
	later   []func() // from Later
	looks   int      // how often to look for events before blocking
	blocks  uint64   // how often it has blocked
	ending  bool     // new flows are reset
	slots   slots
	timers  timers
	clocked clocked
	ready   queue // flows that have something to do
	pipes   []*pipe
	paused  time.Time // no pipe is tried before
	free    []*message
	held    int // messages that flows hold
	msg     *message
	big     []byte // for peeking
}

// message is the memory of one read.
type message [messageLen]byte

func newLoop(s *shared) (*Loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd2", err)
	}
	l := &Loop{shared: s, epoll: epoll, wakeup: wakeup, ended: make(chan struct{}), msg: new(message)}
	if _, err := l.Watch(wakeup, unix.EPOLLIN|unix.EPOLLET, func(uint32) {}); err != nil {
		_ = unix.Close(epoll)
		_ = unix.Close(wakeup)
		return nil, err
	}
	return l, nil
}

// Flows returns how many flows the loop has.
func (l *Loop) Flows() int { return int(l.flows.Load()) }

// Do runs fn on the loop's thread soon, in the order of the calls. It returns false,
// and fn is never run, once the loop is closed. It may be called anywhere, also on
// the loop's thread, and does not block.
func (l *Loop) Do(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.orders = append(l.orders, fn)
	l.wakeLocked()
	return true
}

func (l *Loop) wakeLocked() {
	if l.woken {
		return
	}
	l.woken = true
	// The counter is never read: each write is an event of its own (eventfd(2) with
	// EPOLLET), and 2^64 of them will not come.
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(l.wakeup, one[:])
}

func (l *Loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wakeLocked()
}

// run is the loop's goroutine. close ends it.
func (l *Loop) run() {
	defer close(l.ended)
	for l.obey() {
		n := l.wait()
		if n >= busyEvents {
			l.looks = max(l.looks, busyLooks)
		}
		for i := range l.events[:n] {
			l.dispatch(&l.events[i])
		}
		l.timers.fire()
		l.turn()
		l.catchUp()
	}
	l.end()
}

// Later runs fn once the flows that are ready now have had their turn. It is for what
// may profit from waiting for a moment, and costs nothing when nothing else is to be
// done. It belongs on the loop's thread.
func (l *Loop) Later(fn func()) { l.later = append(l.later, fn) }

// catchUp runs what Later has put off, also what that puts off.
func (l *Loop) catchUp() {
	for i := 0; i < len(l.later); i++ {
		fn := l.later[i]
		l.later[i] = nil
		fn()
	}
	l.later = l.later[:0]
}

// obey runs what Do has accepted. It reports false when the loop was closed and
// nothing more can come.
func (l *Loop) obey() bool {
	l.mu.Lock()
	orders, closed := l.orders, l.closed
	l.orders, l.woken = l.spare[:0], false
	l.mu.Unlock()
	for i, fn := range orders {
		fn()
		orders[i] = nil
	}
	l.spare = orders
	return !closed
}

// end resets what is left, and what the ends of flows begin.
func (l *Loop) end() {
	l.ending = true
	for _, f := range l.slots.flows() {
		f.Abort(ErrClosed)
	}
	for !l.ready.empty() || len(l.later) > 0 {
		l.turn()
		l.catchUp()
	}
	for _, p := range l.pipes {
		l.destroy(p)
	}
	_ = unix.Close(l.epoll)
	_ = unix.Close(l.wakeup)
	l.epoll = -1 // for a Watch that is closed later
}

// dispatch marks what an event says. Flows are served in the turn that follows,
// others at once.
func (l *Loop) dispatch(ev *unix.EpollEvent) {
	s := l.slots.find(uint32(ev.Fd), uint32(ev.Pad))
	switch {
	case s == nil: // closed since the kernel wrote the event
	case s.watch != nil:
		s.watch.ready(ev.Events)
	default:
		s.flow.mark(s.side, ev.Events)
		l.ready.push(s.flow)
	}
}

// turn gives each flow that has something to do one turn. What becomes ready
// meanwhile waits for the next one, and new events are looked at before.
func (l *Loop) turn() {
	l.tick()
	for n := l.ready.len; n > 0; n-- {
		f := l.ready.pop()
		if f.serve() {
			l.ready.push(f)
		}
	}
}
