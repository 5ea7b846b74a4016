package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/stacktest"
)

// dialCall is one call of DialTCP.
type dialCall struct{ source, target netip.AddrPort }

// tcpFakeEngine is a container whose servers send everything back.
type tcpFakeEngine struct {
	mu    sync.Mutex // guards the fields below
	calls []dialCall
	// answer says what becomes of a dial; nil means that it is answered.
	answer func(ctx context.Context, c dialCall) error
	// full is how often a new stream has no room at first.
	full int
}

func (e *tcpFakeEngine) DialTCP(ctx context.Context, source, target netip.AddrPort) (relay.Stream, error) {
	c := dialCall{source, target}
	e.mu.Lock()
	e.calls = append(e.calls, c)
	answer := e.answer
	s := newEchoStream()
	s.full = e.full
	e.mu.Unlock()
	if answer != nil {
		if err := answer(ctx, c); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (e *tcpFakeEngine) set(answer func(context.Context, dialCall) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

// dials returns the calls so far.
func (e *tcpFakeEngine) dials() []dialCall {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]dialCall(nil), e.calls...)
}

// hang is a container that does not answer.
func hang(ctx context.Context, _ dialCall) error {
	<-ctx.Done()
	return syscall.ETIMEDOUT
}

var errStreamReset = errors.New("stream was reset")

// echoStream is a Stream whose other end sends back what it gets.
type echoStream struct {
	mu       sync.Mutex // guards the fields below
	held     []byte
	full     int
	eof      bool
	broken   bool
	onReset  func()
	readable chan struct{}
	writable chan struct{}
}

func newEchoStream() *echoStream {
	return &echoStream{readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *echoStream) Peek(bufs [][]byte) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken:
		return bufs, errStreamReset
	case len(s.held) > 0:
		return append(bufs, s.held), nil
	case s.eof:
		return bufs, io.EOF
	}
	return bufs, nil
}

func (s *echoStream) Consume(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = s.held[n:]
}

func (s *echoStream) Fill(n int, read func([]byte) error) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return 0, errStreamReset
	}
	if s.full > 0 {
		s.full--
		wake(s.writable)
		return 0, relay.ErrWouldBlock
	}
	n = min(n, 7) // bytes at a time, so that callers have to go on
	b := make([]byte, n)
	if err := read(b); err != nil {
		return 0, err
	}
	s.held = append(s.held[:len(s.held):len(s.held)], b...)
	wake(s.readable)
	return n, nil
}

func (s *echoStream) Readable() <-chan struct{} { return s.readable }
func (s *echoStream) Writable() <-chan struct{} { return s.writable }
func (s *echoStream) Close()                    {}

func (s *echoStream) CloseWrite() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eof = true
	wake(s.readable)
}

func (s *echoStream) Abort() {
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

func (s *echoStream) OnReset(fn func()) {
	s.mu.Lock()
	s.onReset = fn
	broken := s.broken
	s.mu.Unlock()
	if broken {
		fn()
	}
}

// tcpRig is a TCP on a fake engine.
type tcpRig struct {
	*TCP
	engine   *tcpFakeEngine
	counters *portdriver.Counters
}

func newTCPRig(t *testing.T, change func(*TCPConfig)) *tcpRig {
	t.Helper()
	stacktest.NoLeaks(t)
	r := &tcpRig{engine: new(tcpFakeEngine), counters: new(portdriver.Counters)}
	c := TCPConfig{Addresses: udpPlan, Engine: r.engine, Counters: r.counters}
	if change != nil {
		change(&c)
	}
	r.TCP = NewTCP(c)
	t.Cleanup(r.Close)
	return r
}

// tcpSocket opens a listener as the registry does and returns it with its address.
func tcpSocket(t *testing.T, at string) (*os.File, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	return f, addrPort(l.Addr())
}

// publish opens a listener for port 80 of the container.
func (r *tcpRig) publish(t *testing.T, at string, l portdriver.Listener) netip.AddrPort {
	t.Helper()
	l.Network = portdriver.NetTCP
	if l.Target == (netip.AddrPort{}) {
		l.Target = netip.AddrPortFrom(netip.Addr{}, 80)
	}
	l.File, l.Bound = tcpSocket(t, at)
	if err := r.Open(l); err != nil {
		t.Fatal(err)
	}
	return l.Bound
}

// tcpClient connects to a published port.
func tcpClient(t *testing.T, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(stacktest.Patience))
	t.Cleanup(func() { c.Close() })
	return c
}

// echoes sends a message and waits for it to come back.
func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	message := []byte("through the container and back")
	if _, err := c.Write(message); err != nil {
		t.Error(err)
		return
	}
	b := make([]byte, len(message))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != string(message) {
		t.Errorf("got %q back, %v", b, err)
	}
}

// isReset waits for the connection to be reset.
func isReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

// refusesTCP connects to a published port that must reset the connection, which may
// be before Dial has returned.
func refusesTCP(t *testing.T, to netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(stacktest.Patience))
	isReset(t, c)
}

// counted waits for a counter.
func (r *tcpRig) counted(t *testing.T, c portdriver.Counter, want uint64) {
	t.Helper()
	stacktest.Eventually(t, c.String(), func() bool { return r.counters.Load(c) >= want })
	if n := r.counters.Load(c); n != want {
		t.Errorf("%s is %d, want %d", c, n, want)
	}
}

// idle waits until there are no connections.
func (r *tcpRig) idle(t *testing.T) {
	t.Helper()
	stacktest.Eventually(t, "the connections to end", func() bool { return r.Status().TCP == 0 })
}
