package netstack

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/stack/sockcall"
)

// acceptor is a listening socket; *net.TCPListener is one.
type acceptor interface {
	AcceptTCP() (*net.TCPConn, error)
	Close() error
}

// tcpListener is a listener that is served.
type tcpListener struct {
	d       *TCP
	desc    portdriver.Listener
	socket  acceptor
	port    int          // its number, for admission
	pending atomic.Int64 // connections of it that the container has not answered

	shutting sync.Once
	shut     chan struct{} // closed when it is to end
	done     chan struct{} // closed when run has ended
}

// end closes the listener and waits for the accept loop.
func (ln *tcpListener) end() {
	ln.shutting.Do(func() {
		close(ln.shut)
		_ = ln.socket.Close()
	})
	<-ln.done
}

// run accepts until end is called.
func (ln *tcpListener) run() {
	defer close(ln.done)
	defer ln.d.forget(ln)
	for {
		conn, err := ln.socket.AcceptTCP()
		if err == nil {
			ln.take(conn)
			continue
		}
		if ln.ended() || !ln.cope(err) {
			return
		}
	}
}

func (ln *tcpListener) ended() bool {
	select {
	case <-ln.shut:
		return true
	default:
		return false
	}
}

// deadPause is how long a listener rests that cannot accept for another reason than
// a shortage: someone who has a copy has shut it down.
const deadPause = time.Second

// cope rests as an error of accept asks for. It reports false when the listener is
// to end.
func (ln *tcpListener) cope(err error) bool {
	pause := acceptPause(err)
	if pause == 0 {
		return true
	}
	ln.d.cfg.Counters.Inc(portdriver.Paused)
	ln.d.complain(ln.desc, err)
	return ln.rest(pause)
}

// acceptPause is how long to rest after an error of accept4(2): not at all when only
// the new connection is concerned, whose own errors accept tells too (accept(2)).
func acceptPause(err error) time.Duration {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return deadPause
	}
	switch sockcall.AfterAccept(errno) {
	case sockcall.AcceptShort:
		return portdriver.AcceptPause
	case sockcall.AcceptNext:
		return 0
	}
	return deadPause
}

// rest waits. It reports false when the listener is to end.
func (ln *tcpListener) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ln.shut:
		return false
	}
}

// take begins an accepted connection, as soon as there is a place for it.
func (ln *tcpListener) take(conn *net.TCPConn) {
	d := ln.d
	d.cfg.Counters.Inc(portdriver.Accepted)
	for !admission.MayPend(ln.pending.Load(), d.pending.Load()) || !d.places.Reserve() {
		if !ln.rest(portdriver.AcceptPause) {
			d.cfg.Counters.Inc(portdriver.RefusedLimit)
			reset(conn)
			return
		}
	}
	peer := addrPort(conn.RemoteAddr())
	c := &tcpConn{ln: ln, client: conn, peer: peer, key: admission.KeyOf(peer.Addr())}
	if !d.places.Claim(c.key, ln.port) {
		d.cfg.Counters.Inc(portdriver.RefusedClient)
		reset(conn)
		return
	}
	ln.pending.Add(1)
	d.pending.Add(1)
	d.running.Go(c.run)
}

// reset closes a connection with RST.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
