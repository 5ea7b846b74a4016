package hostsock

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Handler gets what arrives on a socket, in the poller's goroutine. While a call
// lasts nothing else is received, which is how a full way to the container holds
// the sockets back. It must not close the poller.
type Handler interface {
	// Receive gets a datagram, or several of one flow that arrived together.
	Receive(m Message)
	// Report gets an error about a packet sent earlier.
	Report(r Report)
}

// burst is how many messages one socket may deliver, or a few more that came with
// them, before the next one has its turn.
const burst = 32

const (
	// stream is how many messages of one turn say that more are on their way.
	stream = 4
	// gather is how long the goroutine then lets them come: with the kernel's timer
	// slack some 100 µs, in which a receive buffer of the default size does not fill up
	// (90 datagrams of 1,400 bytes at 300,000 a second are 300 µs). Without it a sender on
	// another processor is followed datagram by datagram, and 5 % of 2.5 Gbit/s are lost
	// inside instead of 0.6 %. It is what a network card's interrupt moderation does.
	// Whoever waits for an answer before going on sends less at a time and is not held up.
	gather = 50 * time.Microsecond
)

// Poller waits for many sockets. NewPoller starts its goroutine, Close ends it
// and waits.
type Poller struct {
	epoll *os.File
	raw   syscall.RawConn
	wake  int           // an eventfd with the token 0, which asks run to end
	done  chan struct{} // closed by run when it ends

	mu      sync.Mutex // guards the fields below
	entries map[uint64]entry
	last    uint64 // token given out last; tokens are never used again
}

type entry struct {
	socket  *Socket
	handler Handler
}

// NewPoller returns a running poller without sockets.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("poll host sockets: %w", os.NewSyscallError("epoll_create1", err))
	}
	p := &Poller{
		epoll:   os.NewFile(uintptr(fd), "epoll"),
		done:    make(chan struct{}),
		entries: make(map[uint64]entry),
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = p.epoll.Close()
		return nil, fmt.Errorf("poll host sockets: %w", os.NewSyscallError("eventfd2", err))
	}
	p.raw, err = p.epoll.SyscallConn()
	if err == nil {
		err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, p.wake, &unix.EpollEvent{Events: unix.EPOLLIN}))
	}
	if err != nil {
		_ = p.epoll.Close()
		_ = unix.Close(p.wake)
		return nil, fmt.Errorf("poll host sockets: %w", err)
	}
	go p.run()
	return p, nil
}

// Add has what arrives on s delivered to h until s is closed. A socket belongs to
// one poller.
func (p *Poller) Add(s *Socket, h Handler) error {
	p.mu.Lock()
	p.last++
	s.poller, s.token = p, p.last
	p.entries[s.token] = entry{s, h}
	p.mu.Unlock()

	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.token), Pad: int32(s.token >> 32)}
	var err error
	if cerr := p.raw.Control(func(fd uintptr) { err = unix.EpollCtl(int(fd), unix.EPOLL_CTL_ADD, s.fd, &ev) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		p.remove(s.token)
		return fmt.Errorf("poll host socket %s: %w", s.local, os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

// unwatch takes a descriptor out of the epoll instance, which closing it does not
// do while another process has a copy (epoll(7), Questions 6): the instance would
// report the socket for ever, to nobody.
func (p *Poller) unwatch(fd int) {
	// An error means that the instance is closed, or never had the descriptor.
	_ = p.raw.Control(func(epoll uintptr) { _ = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_DEL, fd, nil) })
}

// remove forgets a socket. Closing its only descriptor takes it out of the epoll
// instance; an event read before that finds no entry.
func (p *Poller) remove(token uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.entries, token)
}

// Close ends the goroutine and waits for it. It does not close the sockets.
func (p *Poller) Close() error {
	p.mu.Lock()
	wake := p.wake
	p.wake = -1
	p.mu.Unlock()
	if wake < 0 {
		<-p.done
		return os.ErrClosed
	}
	_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-p.done
	_ = unix.Close(wake)
	return p.epoll.Close()
}

func (p *Poller) run() {
	defer close(p.done)
	var r reader
	w := new(waiter)
	w.ask = w.look
	for {
		n, err := w.wait(p.raw)
		if err != nil {
			return
		}
		got, left := 0, false
		for _, ev := range w.events[:n] {
			token := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			if token == 0 {
				return
			}
			p.mu.Lock()
			e, ok := p.entries[token]
			p.mu.Unlock()
			if ok {
				n, more := r.drain(e, ev.Events)
				got, left = got+n, left || more
			}
		}
		if got >= stream && !left {
			// The runtime's timers are too coarse (1 ms while it waits for sockets).
			ts := unix.NsecToTimespec(int64(gather))
			_ = unix.Nanosleep(&ts, nil) // a signal may end it early
		}
	}
}

// wait blocks until a socket is ready. The thread blocks in epoll_wait(2) itself: by
// the runtime's poller each wakeup goes through another thread.
func (w *waiter) wait(raw syscall.RawConn) (int, error) {
	err := raw.Control(w.ask)
	if err == nil {
		err = w.err
	}
	return w.n, err
}

// waiter has what waiting needs, so that it does not allocate.
type waiter struct {
	events [64]unix.EpollEvent
	n      int
	err    error
	ask    func(fd uintptr) // look
}

// look asks the epoll instance.
func (w *waiter) look(fd uintptr) {
	for {
		if w.n, w.err = unix.EpollWait(int(fd), w.events[:], -1); w.err != unix.EINTR {
			return
		}
	}
}

// drain delivers a burst of what waits. It returns how many messages that was, and
// whether more may be left. Sockets are registered level-triggered; what is left over
// comes with the next event.
func (r *reader) drain(e entry, events uint32) (got int, left bool) {
	if events&unix.EPOLLERR != 0 {
		for range burst {
			rep, errno := r.report(e.socket)
			if errno != 0 {
				break
			}
			e.handler.Report(rep)
		}
	}
	for got < burst {
		r.courtesy.await(e.socket)
		start := time.Now()
		more, errno := r.receive(e.socket)
		switch errno {
		case 0:
			got += r.used
			r.deliver(e)
			r.courtesy.delivered(e.socket, r.used, start)
			if !more {
				return got, false
			}
		case unix.EAGAIN:
			return got, false
		default:
			got++ // of an earlier packet
		}
	}
	return got, true
}
