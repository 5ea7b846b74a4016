// Package stream makes a TCP endpoint of netstack a relay.Stream, for flows of
// either direction.
package stream

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/postern-net/postern/stack/relay"
)

// Keepalive towards the container, whose kernel is on this machine: it only
// has to find orphans that wait for an end of stream (FIN_WAIT2) or whose
// network namespace lost its address.
const (
	guestKeepaliveIdle     = 10 * time.Minute
	guestKeepaliveInterval = 75 * time.Second
)

// Stream is a netstack endpoint as a relay.Stream.
type Stream struct {
	ep       tcpip.Endpoint
	wq       *waiter.Queue
	in, out  waiter.Entry
	readable chan struct{}
	writable chan struct{}
	hup      waiter.Entry
	hooked   bool // hup is registered; set before both loops, read after them
	// ended says that we sent our end of stream.
	ended atomic.Bool

	bufs    [][]byte // what Peek's collector appends to
	consume int      // what Consume's writer still drops
	collect collector
	discard discarder
	payload payloader
}

var _ relay.Stream = (*Stream)(nil)

// New takes ownership of a connected endpoint and its queue.
func New(ep tcpip.Endpoint, wq *waiter.Queue) *Stream {
	s := &Stream{ep: ep, wq: wq}
	s.collect.s, s.discard.s = s, s
	s.in, s.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.out, s.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&s.in)
	wq.EventRegister(&s.out)
	keepAlive(ep)
	return s
}

// keepAlive cannot fail on a TCP endpoint; an endpoint that is closed already
// shows that at its first read.
func keepAlive(ep tcpip.Endpoint) {
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(guestKeepaliveIdle), tcpip.KeepaliveIntervalOption(guestKeepaliveInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
}

// Readable implements relay.Stream.
func (s *Stream) Readable() <-chan struct{} { return s.readable }

// Writable implements relay.Stream.
func (s *Stream) Writable() <-chan struct{} { return s.writable }

// Peek implements relay.Stream.
func (s *Stream) Peek(bufs [][]byte) ([][]byte, error) {
	s.bufs = bufs
	_, err := s.ep.Read(&s.collect, tcpip.ReadOptions{Peek: true})
	bufs, s.bufs = s.bufs, nil
	if len(bufs) > 0 {
		return bufs, nil
	}
	switch err.(type) {
	case nil, *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer:
		return nil, nil
	case *tcpip.ErrClosedForReceive:
		if s.wasReset() {
			return nil, streamError(&tcpip.ErrConnectionReset{})
		}
		return nil, io.EOF
	}
	return nil, streamError(err)
}

// Consume implements relay.Stream.
func (s *Stream) Consume(n int) {
	s.consume = n
	// The writer takes n bytes and refuses the next: that ends the read.
	_, _ = s.ep.Read(&s.discard, tcpip.ReadOptions{})
	s.ep.ModerateRecvBuf(n)
}

// Fill implements relay.Stream.
func (s *Stream) Fill(n int, read func([]byte) error) (int, error) {
	s.payload = payloader{left: n, read: read}
	took, err := s.ep.Write(&s.payload, tcpip.WriteOptions{})
	switch {
	case s.payload.err != nil:
		return int(took), s.payload.err
	case err == nil:
		return int(took), nil
	}
	if _, ok := err.(*tcpip.ErrWouldBlock); ok {
		return 0, relay.ErrWouldBlock
	}
	return int(took), streamError(err)
}

// CloseWrite implements relay.Stream.
func (s *Stream) CloseWrite() {
	s.ended.Store(true)
	_ = s.ep.Shutdown(tcpip.ShutdownWrite)
}

// Abort implements relay.Stream.
func (s *Stream) Abort() { s.ep.Abort() }

// OnReset implements relay.Stream.
func (s *Stream) OnReset(fn func()) {
	notify := func(waiter.EventMask) {
		if s.wasReset() {
			fn()
		}
	}
	s.hup = waiter.NewFunctionEntry(waiter.EventHUp|waiter.EventErr, notify)
	s.wq.EventRegister(&s.hup)
	s.hooked = true
	notify(0) // for what happened before
}

// wasReset reads the endpoint's state without its lock, which whoever notifies
// may hold. A RST after the container's end of stream leaves the same state as
// an orderly end, but that one cannot come before our own end of stream.
func (s *Stream) wasReset() bool {
	switch tcp.EndpointState(s.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose:
		return !s.ended.Load()
	}
	return false
}

// Close implements relay.Stream.
func (s *Stream) Close() {
	s.wq.EventUnregister(&s.in)
	s.wq.EventUnregister(&s.out)
	if s.hooked {
		s.wq.EventUnregister(&s.hup)
	}
	s.ep.Close()
}

// streamError turns netstack's error, which is no Go error, into one.
func streamError(err tcpip.Error) error { return errors.New(err.String()) }

// collector is the io.Writer with which Peek learns where the bytes lie.
type collector struct{ s *Stream }

func (c *collector) Write(b []byte) (int, error) {
	if len(c.s.bufs) == cap(c.s.bufs) {
		return 0, io.ErrShortWrite
	}
	if len(b) > 0 {
		c.s.bufs = append(c.s.bufs, b)
	}
	return len(b), nil
}

// discarder is the io.Writer with which Consume drops bytes.
type discarder struct{ s *Stream }

func (d *discarder) Write(b []byte) (int, error) {
	n := min(len(b), d.s.consume)
	d.s.consume -= n
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// payloader lets netstack's own chunks be filled by read. Its length shrinks as
// bytes are delivered; a short delivery would make netstack loop for ever.
type payloader struct {
	left int
	read func([]byte) error
	err  error
}

// Len implements tcpip.Payloader.
func (p *payloader) Len() int { return p.left }

// Read implements io.Reader. netstack calls it with an empty slice first.
func (p *payloader) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n := min(len(b), p.left)
	if n == 0 {
		if len(b) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	if p.err = p.read(b[:n]); p.err != nil {
		return 0, p.err
	}
	p.left -= n
	return n, nil
}
