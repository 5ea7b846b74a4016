package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-net/postern/stack/stacktest"
)

var errReset = errors.New("stream was reset")

// fakeStream is a Stream whose other end is in the test's hands.
type fakeStream struct {
	mu       sync.Mutex // guards the fields below
	received [][]byte   // what Peek shows
	eof      bool
	broken   bool
	sent     []byte // what Fill took
	room     int    // how much more Fill takes
	most     int    // how much one Fill takes; 0 means no limit
	piece    int    // how much one read is asked for; 0 means no limit
	onReset  func()

	closedWrite, aborted, closed atomic.Bool
	readable, writable           chan struct{}
}

func newFake() *fakeStream {
	return &fakeStream{room: 1 << 40, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *fakeStream) Peek(bufs [][]byte) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.received {
		if len(bufs) == cap(bufs) {
			break
		}
		bufs = append(bufs, b)
	}
	switch {
	case len(bufs) > 0:
		return bufs, nil
	case s.broken:
		return nil, errReset
	case s.eof:
		return nil, io.EOF
	}
	return nil, nil
}

func (s *fakeStream) Consume(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n > 0 {
		b := s.received[0]
		if n < len(b) {
			s.received[0] = b[n:]
			return
		}
		n -= len(b)
		s.received = s.received[1:]
	}
}

func (s *fakeStream) Fill(n int, read func([]byte) error) (int, error) {
	s.mu.Lock()
	room, piece := min(n, s.room), s.piece
	if s.most > 0 {
		room = min(room, s.most)
	}
	broken := s.broken
	s.mu.Unlock()
	switch {
	case broken:
		return 0, errReset
	case room == 0:
		return 0, ErrWouldBlock
	}
	b := make([]byte, room)
	for at := 0; at < room; {
		k := room - at
		if piece > 0 {
			k = min(k, piece)
		}
		if err := read(b[at : at+k]); err != nil {
			return 0, err
		}
		at += k
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, b...)
	s.room -= room
	return room, nil
}

func (s *fakeStream) Readable() <-chan struct{} { return s.readable }
func (s *fakeStream) Writable() <-chan struct{} { return s.writable }
func (s *fakeStream) CloseWrite()               { s.closedWrite.Store(true) }
func (s *fakeStream) Close()                    { s.closed.Store(true) }

func (s *fakeStream) Abort() {
	s.aborted.Store(true)
	s.reset()
}

func (s *fakeStream) OnReset(fn func()) {
	s.mu.Lock()
	s.onReset = fn
	broken := s.broken
	s.mu.Unlock()
	if broken {
		fn()
	}
}

// reset breaks the stream, as a RST from the container does.
func (s *fakeStream) reset() {
	s.mu.Lock()
	s.broken = true
	fn := s.onReset
	s.mu.Unlock()
	wake(s.readable)
	wake(s.writable)
	if fn != nil {
		fn()
	}
}

// deliver plays bytes from the container.
func (s *fakeStream) deliver(pieces ...[]byte) {
	s.mu.Lock()
	s.received = append(s.received, pieces...)
	s.mu.Unlock()
	wake(s.readable)
}

// end plays the container's end of stream.
func (s *fakeStream) end() {
	s.mu.Lock()
	s.eof = true
	s.mu.Unlock()
	wake(s.readable)
}

func (s *fakeStream) setRoom(n int) {
	s.mu.Lock()
	s.room = n
	s.mu.Unlock()
	wake(s.writable)
}

func (s *fakeStream) numSent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

func (s *fakeStream) numUnread() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.received {
		n += len(b)
	}
	return n
}

// running is a relay under test.
type running struct {
	*fakeStream
	server  *net.TCPConn // the host's peer
	out, in atomic.Uint64
	ended   chan struct{}
}

func start(t testing.TB, s *fakeStream) *running {
	t.Helper()
	host, server := stacktest.TCPPair(t)
	r := &running{fakeStream: s, server: server, ended: make(chan struct{})}
	go func() {
		TCP(s, host, Counts{Out: &r.out, In: &r.in})
		close(r.ended)
	}()
	return r
}

// wait waits for the relay's end.
func (r *running) wait(t testing.TB) {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(stacktest.Patience):
		t.Fatal("the relay has not ended")
	}
	if !r.closed.Load() {
		t.Error("the stream was not closed")
	}
}

func (r *running) running(t testing.TB) {
	t.Helper()
	select {
	case <-r.ended:
		t.Fatal("the relay has ended")
	default:
	}
}
