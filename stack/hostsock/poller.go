package hostsock

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Handler gets what arrives on a socket, in the poller's goroutine. While a call
// lasts nothing else is received, which is how a full way to the container holds
// the sockets back. It must not close the poller.
type Handler interface {
	// Receive gets a datagram, or several that arrived as one.
	Receive(m Message)
	// Report gets an error about a packet sent earlier.
	Report(r Report)
}

// burst is how many messages one socket may deliver before the next one has its
// turn.
const burst = 32

// Poller waits for many sockets. NewPoller starts its goroutine, Close ends it
// and waits.
type Poller struct {
	epoll *os.File
	raw   syscall.RawConn
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
	// A non-blocking file is one that the runtime's poller takes.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("poll host sockets: %w", os.NewSyscallError("fcntl", err))
	}
	p := &Poller{
		epoll:   os.NewFile(uintptr(fd), "epoll"),
		done:    make(chan struct{}),
		entries: make(map[uint64]entry),
	}
	if p.raw, err = p.epoll.SyscallConn(); err != nil {
		_ = p.epoll.Close()
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
	err := p.epoll.Close()
	<-p.done
	return err
}

func (p *Poller) run() {
	defer close(p.done)
	var r reader
	var events [64]unix.EpollEvent
	for {
		n, err := p.wait(events[:])
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			p.mu.Lock()
			e, ok := p.entries[uint64(uint32(ev.Fd))|uint64(uint32(ev.Pad))<<32]
			p.mu.Unlock()
			if ok {
				r.drain(e, ev.Events)
			}
		}
	}
}

// wait blocks in the runtime's poller until a socket is ready. Within the
// callback the epoll instance is asked until it has nothing: the runtime learns
// of changes only.
func (p *Poller) wait(events []unix.EpollEvent) (n int, err error) {
	var waitErr error
	err = p.raw.Read(func(fd uintptr) bool {
		for {
			n, waitErr = unix.EpollWait(int(fd), events, 0)
			if waitErr != unix.EINTR {
				return n > 0 || waitErr != nil
			}
		}
	})
	if err == nil {
		err = waitErr
	}
	return n, err
}

// drain delivers a burst of what waits. Sockets are registered level-triggered;
// what is left over comes with the next event.
func (r *reader) drain(e entry, events uint32) {
	if events&unix.EPOLLERR != 0 {
		for range burst {
			rep, errno := r.report(e.socket)
			if errno != 0 {
				break
			}
			e.handler.Report(rep)
		}
	}
	for range burst {
		m, errno := r.message(e.socket)
		switch errno {
		case 0:
			e.handler.Receive(m)
		case unix.EAGAIN:
			return
		}
	}
}
