package supervisor

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fdWait waits for an event on a descriptor. It uses poll(2) on a thread of its
// own, so that the descriptor's file description, which may be shared with other
// processes, need not become non-blocking.
type fdWait struct {
	fired chan struct{} // closed when the event has come
	stop  *os.File      // closing it wakes the goroutine
	wake  *os.File
	done  sync.WaitGroup
}

// waitFD starts waiting for one of the events of poll(2); POLLHUP and POLLERR
// always count. The file must stay open until close.
func waitFD(f *os.File, events int16) (*fdWait, error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("wait for %s: %w", f.Name(), err)
	}
	w := &fdWait{fired: make(chan struct{}), stop: stop, wake: wake}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: events}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
	w.done.Add(1)
	go w.run(fds)
	return w, nil
}

func (w *fdWait) run(fds []unix.PollFd) {
	defer w.done.Done()
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || fds[0].Revents != 0:
			close(w.fired)
			return
		case fds[1].Revents != 0:
			return
		}
	}
}

// C is closed when the event has come; nil for a nil fdWait.
func (w *fdWait) C() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.fired
}

// close ends the waiting.
func (w *fdWait) close() {
	if w == nil {
		return
	}
	_ = w.stop.Close()
	w.done.Wait()
	_ = w.wake.Close()
}
