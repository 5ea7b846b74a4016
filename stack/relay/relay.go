package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrWouldBlock is returned by Stream.Fill when there is no room.
var ErrWouldBlock = errors.New("stream is full")

// Stream is the user-space side of a TCP flow. Peek and Consume are called by
// one goroutine, Fill by another, the closing calls by either.
type Stream interface {
	// Peek appends received pieces that were not consumed yet to bufs, as many
	// as its capacity takes. They stay valid until they are consumed. With none
	// to show it returns io.EOF after the peer's end of stream, another error
	// after a reset, and nil otherwise.
	Peek(bufs [][]byte) ([][]byte, error)
	// Consume drops the first n received bytes.
	Consume(n int)
	// Fill sends at most n bytes, which it obtains from read, called once or
	// more, never for more than n bytes altogether. read fills its slice whole
	// or fails. Fill returns how many bytes were taken; ErrWouldBlock when there
	// is no room at all.
	Fill(n int, read func(b []byte) error) (int, error)
	// Readable and Writable receive a value after Peek or Fill, having had
	// nothing or no room, may have some.
	Readable() <-chan struct{}
	Writable() <-chan struct{}
	// CloseWrite sends an end of stream.
	CloseWrite()
	// Abort resets the flow. Peek and Fill fail from then on.
	Abort()
	// OnReset sets what is called, perhaps more than once, when the flow has
	// been reset, by the peer or by Abort. fn does not block.
	OnReset(fn func())
	// Close gives the stream back after both directions have ended.
	Close()
}

// Counts receives how many payload bytes went each way, seen from the Stream.
type Counts struct {
	Out, In *atomic.Uint64
}

// TCP relays between stream and host until both directions have ended, then
// closes both. It takes ownership of both.
func TCP(stream Stream, host *net.TCPConn, counts Counts) {
	defer stream.Close()
	defer host.Close()
	raw, err := host.SyscallConn()
	if err != nil {
		stream.Abort()
		return
	}
	// Until all that the container sent is with the kernel, whatever ends this
	// process ends the flow with RST: an end of stream would pass for the whole.
	_ = host.SetLinger(0)
	// A loop that waits for the host socket does not look at the stream.
	stream.OnReset(func() { _ = host.SetDeadline(past) })
	var inward sync.WaitGroup
	var outwardEnded, streamReset atomic.Bool
	inward.Add(1)
	go func() {
		defer inward.Done()
		in := inbound{stream: stream, host: newHostReader(raw), count: counts.In}
		err := in.run()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			streamReset.Store(true) // the outward loop may still have what came before
			return
		}
		if err != nil || wasReset(raw) && !outwardEnded.Load() {
			reset(stream, host)
			return
		}
		stream.CloseWrite()
	}()
	out := outbound{stream: stream, host: newHostWriter(raw), count: counts.Out}
	if err := out.run(); err != nil {
		reset(stream, host)
	} else {
		outwardEnded.Store(true)
		_ = host.SetLinger(-1) // the kernel delivers the rest, also without us
		_ = host.CloseWrite()  // an error means that the inward loop sees a reset
	}
	inward.Wait()
	if streamReset.Load() {
		reset(stream, host)
	}
}

// past is a deadline that has always expired.
var past = time.Unix(1, 0)

// reset ends both directions hard: the host's peer and the container get RST.
func reset(stream Stream, host *net.TCPConn) {
	_ = host.SetLinger(0)
	_ = host.Close()
	stream.Abort() // last: to the other loop it may look like an end of stream
}

// maxPieces is how many pieces one writev takes. A piece is at least a segment's
// header view or its body, so 64 are up to 2 MiB: more than a socket buffer.
const maxPieces = 64

// outbound moves bytes from the stream to the host.
type outbound struct {
	stream Stream
	host   *hostWriter
	count  *atomic.Uint64
	pieces [maxPieces][]byte
}

func (o *outbound) run() error {
	for {
		bufs, err := o.stream.Peek(o.pieces[:0])
		switch {
		case len(bufs) > 0:
			n, err := o.host.write(bufs)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				n, err = o.host.writeNow(bufs)
			}
			if n > 0 {
				o.count.Add(uint64(n))
				o.stream.Consume(n)
			}
			clear(bufs)
			if err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		default:
			<-o.stream.Readable()
		}
	}
}

// writeNow writes what the socket has room for, if any, whatever its deadline: a
// stream that was reset may still have bytes that came before that, and the kernel
// shows these to a reader before the reset.
func (w *hostWriter) writeNow(bufs [][]byte) (n int, err error) {
	err = w.raw.Control(func(fd uintptr) {
		for _, b := range bufs {
			sent, errno := send(int32(fd), b, 0)
			if errno == 0 {
				n += sent
			}
			if errno != 0 || sent < len(b) {
				return
			}
		}
	})
	if n == 0 && err == nil {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// inbound moves bytes from the host to the stream.
type inbound struct {
	stream Stream
	host   *hostReader
	count  *atomic.Uint64
}

func (i *inbound) run() error {
	defer i.host.release()
	for {
		n, err := i.host.wait()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := i.fill(n); err != nil {
			return err
		}
	}
}

// fill moves n bytes that the host socket holds for sure.
func (i *inbound) fill(n int) error {
	for n > 0 {
		took, err := i.stream.Fill(n, i.host.readFull)
		switch {
		case errors.Is(err, ErrWouldBlock):
			<-i.stream.Writable()
		case err != nil:
			return err
		default:
			i.count.Add(uint64(took))
			n -= took
		}
	}
	return nil
}
