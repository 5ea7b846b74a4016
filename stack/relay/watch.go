package relay

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Watch is a descriptor that a loop waits for, other than a flow's: a listener, or a
// socket that is being connected. It does not own the descriptor.
type Watch struct {
	loop  *Loop
	fd    int
	slot  uint32
	ready func(events uint32)
}

// Watch calls ready, on the loop's thread, whenever fd is ready for one of events
// (EPOLLIN, EPOLLOUT … of epoll(7)); EPOLLERR and EPOLLHUP are always among them.
// It is level-triggered unless events has EPOLLET: ready is called again as long as
// the descriptor is ready. A descriptor can be watched once; close the Watch before
// the descriptor.
func (l *Loop) Watch(fd int, events uint32, ready func(events uint32)) (*Watch, error) {
	w := &Watch{loop: l, fd: fd, ready: ready}
	w.slot = l.slots.add(slot{watch: w})
	ev := l.slots.event(w.slot, events)
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.slots.remove(w.slot)
		return nil, fmt.Errorf("watch descriptor %d: %w", fd, os.NewSyscallError("epoll_ctl", err))
	}
	return w, nil
}

// Set replaces the events that are waited for. With 0 only EPOLLERR and EPOLLHUP
// remain.
func (w *Watch) Set(events uint32) error {
	ev := w.loop.slots.event(w.slot, events)
	if err := unix.EpollCtl(w.loop.epoll, unix.EPOLL_CTL_MOD, w.fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", w.fd, os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

// Close ends the calls, at once. It does nothing the second time, and after the loop
// has ended.
func (w *Watch) Close() {
	if w.ready == nil {
		return
	}
	w.ready = nil
	_ = unix.EpollCtl(w.loop.epoll, unix.EPOLL_CTL_DEL, w.fd, nil)
	w.loop.slots.remove(w.slot)
}
