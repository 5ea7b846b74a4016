package splice

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

// listener is a listener that is served. Its methods run on its lane's thread.
type listener struct {
	d    *Driver
	desc portdriver.Listener
	fd   int
	port int // its number, for admission
	lane *lane
	// accepted says how the sockets that it accepts are prepared, but the first few,
	// which it had in its queue before: early.
	accepted relay.Preparation
	early    uint32
	pending  atomic.Int64  // connections of it whose server has not answered
	lookups  chan struct{} // as many may look up a path
	kinds    []handoff.SocketKind

	watched *relay.Watch  // nil while pausing
	timer   *relay.Timer  // ends a pause
	paused  *list.Element // in Driver.waiters, whose lock guards it
	ended   bool
}

// listen takes over a listener's socket and makes sure that it is one that can be
// served.
func (d *Driver) listen(l portdriver.Listener) (*listener, error) {
	if l.File == nil {
		return nil, errors.New("there is no socket")
	}
	defer l.File.Close()
	if err := d.servable(l); err != nil {
		return nil, err
	}
	raw, err := l.File.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	// A copy, because the File's own descriptor may be in Go's poller.
	controlErr := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) })
	if err := errors.Join(controlErr, err); err != nil {
		return nil, fmt.Errorf("copy the descriptor: %w", err)
	}
	if err := listening(fd, l.Network); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if l.Bound.Addr().IsLoopback() {
		relay.Local(fd) // for what it accepts
	}
	l.File = nil
	ln := &listener{d: d, desc: l, fd: fd, lookups: make(chan struct{}, lookups), kinds: d.kinds(l)}
	ln.prepare()
	return ln, nil
}

// prepare spares the accepted sockets their options, which they have from the listener.
func (ln *listener) prepare() {
	prepared := relay.Prepare(ln.fd)
	if ln.desc.Network == portdriver.NetTCP {
		// Of a listener, tcpi_unacked is how many wait to be accepted (tcp_get_info).
		info, err := unix.GetsockoptTCPInfo(ln.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		ln.early = info.Unacked
	}
	ln.accepted = prepared
}

// preparation is that of the socket that was accepted just now.
func (ln *listener) preparation() relay.Preparation {
	if ln.early > 0 {
		ln.early--
		return relay.Unprepared
	}
	return ln.accepted
}

// servable reports what is wrong with a listener's description.
func (d *Driver) servable(l portdriver.Listener) error {
	switch {
	case l.Network != portdriver.NetTCP && l.Network != portdriver.NetUnix:
		return fmt.Errorf("network %q is not for this driver", l.Network)
	case l.Reverse && l.TargetPath == "":
		return errors.New("only a unix socket of the host can be published into the container")
	case l.Reverse && (!filepath.IsAbs(l.TargetPath) || len(l.TargetPath) > maxPath):
		return fmt.Errorf("%s: want an absolute path of at most %d bytes", l.TargetPath, maxPath)
	case l.TargetPath != "" && !l.Reverse && d.cfg.Root == nil && d.cfg.UnixDialer == nil:
		return fmt.Errorf("%s: the container's root directory is not known", l.TargetPath)
	case l.TargetPath == "" && l.Target.Port() == 0:
		return errors.New("there is no target")
	}
	return nil
}

// listening makes sure that fd is a listening stream socket, and that it does not
// block.
func listening(fd int, network portdriver.Network) error {
	want := map[int]bool{unix.AF_UNIX: true}
	if network == portdriver.NetTCP {
		want = map[int]bool{unix.AF_INET: true, unix.AF_INET6: true}
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err == nil && !want[domain] {
		return fmt.Errorf("the socket is none of %s", network)
	}
	typ, typErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listens, listensErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err := errors.Join(err, typErr, listensErr); err != nil {
		return fmt.Errorf("look at the socket: %w", err)
	}
	if typ != unix.SOCK_STREAM || listens == 0 {
		return errors.New("the socket does not listen for streams")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("set O_NONBLOCK: %w", err)
	}
	return nil
}

// discard closes a listener that was never watched.
func (ln *listener) discard() { _ = unix.Close(ln.fd) }

// watch waits for clients.
func (ln *listener) watch() {
	if ln.ended || ln.watched != nil {
		return
	}
	w, err := ln.lane.Watch(ln.fd, unix.EPOLLIN, func(uint32) { ln.accept() })
	if err != nil { // ENOSPC or ENOMEM, epoll_ctl(2)
		ln.pause(portdriver.AcceptPause, err)
		return
	}
	ln.watched = w
}

// end closes the listener for good.
func (ln *listener) end() {
	if ln.ended {
		return
	}
	ln.ended = true
	ln.quiet()
	ln.d.waiters.remove(ln)
	_ = unix.Close(ln.fd)
	ln.d.forgetListener(ln)
}

// quiet ends the watch and the pause.
func (ln *listener) quiet() {
	if ln.watched != nil {
		ln.watched.Close()
		ln.watched = nil
	}
	if ln.timer != nil {
		ln.timer.Stop()
		ln.timer = nil
	}
}

// pause stops accepting for a time, or until something is freed. The watch ends,
// since a listener that someone has shut down would report that all the time. A nil
// err is an ordinary reason.
func (ln *listener) pause(d time.Duration, err error) {
	ln.quiet()
	ln.timer = ln.lane.After(d, ln.resume)
	if err != nil {
		ln.d.counters.Inc(portdriver.Paused)
		ln.d.complain(ln.desc, err)
	}
	ln.d.waiters.add(ln)
}

// resume ends a pause.
func (ln *listener) resume() {
	if ln.ended || ln.watched != nil {
		return
	}
	ln.quiet()
	ln.d.waiters.remove(ln)
	ln.watch()
}

// accept takes clients that wait, a limited number at a time.
func (ln *listener) accept() {
	for range acceptBudget {
		if !ln.mayAccept() || !ln.d.places.Reserve() {
			ln.pause(portdriver.AcceptPause, nil)
			return
		}
		fd, peer, errno := sockcall.Accept(ln.fd)
		if errno == 0 {
			ln.take(fd, peer)
			continue
		}
		ln.d.places.Cancel()
		if !ln.cope(errno) {
			return
		}
	}
}

// mayAccept reports whether the next client need not wait in the kernel.
func (ln *listener) mayAccept() bool {
	for _, kind := range ln.kinds {
		if ln.d.stock.len(kind) >= maxWaiting {
			return false
		}
	}
	return admission.MayPend(ln.pending.Load(), ln.d.pending.Load())
}

// cope handles an error of accept and reports whether to go on at once.
func (ln *listener) cope(errno syscall.Errno) bool {
	switch sockcall.AfterAccept(errno) {
	case sockcall.AcceptNext:
		return true
	case sockcall.AcceptEmpty:
		return false
	case sockcall.AcceptShort:
		// Where clients wait for sockets there are none in stock, and those that
		// were ordered must find room.
		if ln.d.stock.empty() {
			ln.d.cfg.Stock.Shed()
		}
		ln.pause(portdriver.AcceptPause, errno)
	default:
		ln.pause(deadPause, errno)
	}
	return false
}

// take begins an accepted connection, whose place is reserved.
func (ln *listener) take(fd int, peer netip.AddrPort) {
	d := ln.d
	d.counters.Inc(portdriver.Accepted)
	c := &conn{d: d, ln: ln, lane: d.choose(ln.lane), client: fd, prepared: ln.preparation(), server: -1, peer: peer, key: ln.keyOf(peer), started: time.Now()}
	if ln.desc.TargetPath == "" {
		c.routes = d.cfg.Addresses.Routes(peer, ln.desc.Target)
	}
	if !d.places.Claim(c.key, ln.port) {
		d.counters.Inc(portdriver.RefusedClient)
		sockcall.Reset(fd)
		return
	}
	if !d.remember(c) {
		d.places.Release(c.key, ln.port)
		sockcall.Reset(fd)
		return
	}
	c.setPending(1)
	begin := c.lookup
	if ln.desc.TargetPath == "" {
		// Here, so that accepting knows how many wait.
		fd, ok := c.obtain()
		begin = func() { c.begin(fd, ok) }
	}
	if c.lane == ln.lane {
		c.lane.Later(begin) // the client may send something meanwhile, see waiting
	} else {
		c.lane.run(begin)
	}
}

// keyOf is a client as admission tells it. The container's own addresses say nothing:
// it chooses them.
func (ln *listener) keyOf(peer netip.AddrPort) admission.Key {
	if ln.desc.Reverse {
		return admission.Key{}
	}
	return admission.KeyOf(peer.Addr())
}
