package express

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

// home is where connections of one family are made: a listener of the container's
// netns and the loop that dials for it and accepts from it. One thread for both keeps
// pairing free of races, and the listener's event does not wake another one. The
// methods run on the loop's thread.
type home struct {
	out      *Out
	loop     *relay.Loop
	listener int
	accepted relay.Preparation // of what the listener accepts
	watch    *relay.Watch
	// spare is a descriptor that is given up where none is left, so that a client that
	// waits in the listener's queue can be accepted to be reset.
	spare int
}

// serve starts to accept from a listener.
func (o *Out) serve(f *os.File, loop *relay.Loop) (*home, error) {
	fd, err := copyOf(f)
	if err != nil {
		return nil, fmt.Errorf("listener: %w", err)
	}
	h := &home{out: o, loop: loop, listener: fd, spare: -1}
	if err := h.listen(); err != nil {
		h.close()
		return nil, fmt.Errorf("listener: %w", err)
	}
	return h, nil
}

func (h *home) listen() error {
	if on, err := unix.GetsockoptInt(h.listener, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return fmt.Errorf("it does not listen: %w", os.NewSyscallError("getsockopt", unix.EINVAL))
	}
	if err := unix.SetNonblock(h.listener, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	relay.Local(h.listener)
	h.accepted = relay.Prepare(h.listener)
	h.spare = spareOf(h.listener)
	failed := make(chan error, 1)
	if !h.loop.Do(func() {
		var err error
		h.watch, err = h.loop.Watch(h.listener, unix.EPOLLIN|unix.EPOLLET, func(uint32) { h.accept(nil) })
		failed <- err
	}) {
		return relay.ErrClosed
	}
	return <-failed
}

// run runs fn on the loop's thread, or here if there is none any more.
func (h *home) run(fn func()) {
	if !h.loop.Do(fn) {
		fn()
	}
}

func (h *home) close() {
	if h.watch != nil {
		h.watch.Close()
	}
	_ = unix.Close(h.listener)
	if h.spare >= 0 {
		_ = unix.Close(h.spare)
	}
}

// accept pairs what waits in the listener's queue, until c, if it is not nil, has its
// socket. What comes behind that one makes an event of its own.
func (h *home) accept(c *conn) {
	for range acceptBudget {
		fd, peer, errno := sockcall.Accept(h.listener)
		switch {
		case errno == 0:
			h.pair(fd, peer)
			if c != nil && c.stage != injected {
				return
			}
		case sockcall.Short(errno):
			if !h.shed() {
				return
			}
		case sockcall.AfterAccept(errno) != sockcall.AcceptNext:
			return
		}
	}
	h.loop.Do(func() {
		if h.watch != nil {
			h.accept(nil)
		}
	})
}

// pair gives an accepted socket to the connection that wants it. One that nobody wants
// was opened by somebody who connected to the listener himself, or who has changed our
// rules: the guard has not seen it, and it is reset.
func (h *home) pair(fd int, peer netip.AddrPort) {
	if c := h.wanted(fd, peer); c != nil {
		c.open(fd)
		return
	}
	h.out.count(flow.TCPExpressUnpaired)
	sockcall.Reset(fd)
}

func (h *home) wanted(fd int, peer netip.AddrPort) *conn {
	c := h.out.find(flow.Key{Proto: flow.TCP, Initiating: peer, Target: sockcall.LocalAddr(fd)})
	if c == nil || c.stage != injected {
		return nil
	}
	return c
}

// shed resets the first one in the queue where there is no descriptor for it. It
// reports false if that did not work either: the queue is looked at again when the
// next connection comes, or the one that waits there has its time over.
func (h *home) shed() bool {
	h.out.count(flow.TCPExpressShort)
	if h.spare < 0 {
		h.spare = spareOf(h.listener)
	}
	if h.spare < 0 {
		return false
	}
	_ = unix.Close(h.spare)
	fd, peer, errno := sockcall.Accept(h.listener)
	if errno == 0 {
		if c := h.wanted(fd, peer); c != nil {
			c.drop()
		}
		sockcall.Reset(fd)
	}
	h.spare = spareOf(h.listener)
	return errno == 0
}

// spareOf duplicates fd, -1 if it cannot.
func spareOf(fd int) int {
	spare, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1
	}
	return spare
}

// choose returns the loop for a flow that was accepted here.
func (h *home) choose() *relay.Loop {
	best, least := h.loop, h.loop.Flows()-slack
	for _, l := range h.out.cfg.Loops.All() {
		if n := l.Flows(); n < least {
			best, least = l, n
		}
	}
	return best
}
