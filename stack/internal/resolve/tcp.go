package resolve

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/internal/flow"
)

const (
	// idleTimeout ends a stream without queries (RFC 7766 section 6.2.3 asks for
	// some seconds), and one whose client does not take its answers.
	idleTimeout = 10 * time.Second
	// maxPipelined is how many queries of one stream may be under way; then it is
	// not read from. Together with flow.MaxDNSConns it bounds the answers that
	// wait for clients to 64 MiB.
	maxPipelined = 8
)

// stream is one client's connection. Its reader (ServeTCP) starts one goroutine
// a query and waits for them.
type stream struct {
	f    *Forwarder
	conn net.Conn
	wg   sync.WaitGroup

	pipelined chan struct{} // one element a query under way, at most maxPipelined
	writing   chan struct{} // one element while an answer is written
}

// ServeTCP answers the queries that come on a stream, out of order as the
// answers come in (RFC 7766 section 6.2.1.1), until the client ends it or is
// silent for 10 s, ctx ends, or the forwarder is closed. It closes conn and
// returns when all its goroutines have ended. With flow.MaxDNSConns streams open
// it closes conn at once and counts that.
func (f *Forwarder) ServeTCP(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	if !f.begin() {
		return
	}
	defer f.wg.Done()
	select {
	case f.conns <- struct{}{}:
		defer func() { <-f.conns }()
	default:
		f.cfg.Counters.Inc(flow.DNSRefusedLimit)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := &stream{
		f: f, conn: conn,
		pipelined: make(chan struct{}, maxPipelined),
		writing:   make(chan struct{}, 1),
	}
	s.read(ctx)
	// The client may have closed only its own direction: answer what it asked.
	s.wg.Wait()
}

// read takes queries until the stream ends, waiting for a place for each.
func (s *stream) read(ctx context.Context) {
	for {
		if s.conn.SetReadDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		msg, err := dns.ReadMessage(s.conn, maxQuery)
		if err != nil {
			return
		}
		if !enter(ctx, s.pipelined) {
			return
		}
		if !enter(ctx, s.f.slots) {
			<-s.pipelined
			return
		}
		s.wg.Go(func() { s.serve(ctx, msg) })
	}
}

func enter(ctx context.Context, places chan<- struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// serve answers one query. The place among all queries is given back before the
// answer is written, so that a client that does not read holds up only itself.
func (s *stream) serve(ctx context.Context, msg []byte) {
	defer func() { <-s.pipelined }()
	response := s.f.answer(ctx, "tcp", msg)
	<-s.f.slots
	if response == nil || !enter(ctx, s.writing) {
		return
	}
	defer func() { <-s.writing }()
	s.conn.SetWriteDeadline(time.Now().Add(idleTimeout)) // its error is that of the write
	if dns.WriteMessage(s.conn, response) != nil {
		s.conn.Close() // ends the reader
	}
}
