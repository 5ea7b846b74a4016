package slirpapi

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/postern-net/postern/proto/slirp4netns"
)

// Times after which a client is given up.
const (
	// requestTimeout is for the request; programs send theirs at once.
	requestTimeout = 5 * time.Second
	// answerTimeout is for the answer to be taken, a list of thousands at worst.
	answerTimeout = 5 * time.Second
	// acceptPause is how long accepting rests when descriptors or memory ran out.
	acceptPause = 50 * time.Millisecond
)

// accept serves clients until Close.
func (s *Server) accept() {
	failing := false
	for {
		select {
		case s.gate.slots <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		c, err := s.listener.AcceptUnix()
		if err != nil {
			<-s.gate.slots
			if s.ctx.Err() != nil {
				return
			}
			if !failing {
				s.log.Warn("slirp4netns API: accept", "cause", err)
			}
			failing = true
			s.rest()
			continue
		}
		failing = false
		s.serving.Go(func() {
			defer func() { <-s.gate.slots }()
			s.serve(c)
		})
	}
}

// rest waits a moment, or for the end.
func (s *Server) rest() {
	select {
	case <-time.After(acceptPause):
	case <-s.ctx.Done():
	}
}

// serve answers one client. What it has sent and nobody has read makes the kernel
// reset the connection when it is closed; the answer and its end are there before.
func (s *Server) serve(c *net.UnixConn) {
	if !s.gate.enter(c) {
		_ = c.Close()
		return
	}
	defer s.gate.leave(c)
	_ = c.SetReadDeadline(time.Now().Add(s.gate.patience)) // fails if it is gone
	request, err := read(c)
	if request == nil && err == nil {
		return
	}
	var answer []byte
	if err == nil {
		answer, err = s.table.do(s.ctx, request)
	}
	if err != nil {
		s.complain(request, err)
		answer = slirp4netns.AppendError(nil, err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(answerTimeout))
	_, _ = c.Write(answer) // the client may be gone
	_ = c.CloseWrite()
}

// read reads a request, in one piece or in several. Both results are nil if there
// is nobody to answer: the client said nothing, or broke the connection.
func read(r io.Reader) (slirp4netns.Request, error) {
	var buffer [slirp4netns.MaxRequest + 1]byte // one more tells what is too long
	n := 0
	for {
		more, err := r.Read(buffer[n:])
		n += more
		if err != nil && !errors.Is(err, io.EOF) && n == 0 {
			return nil, nil
		}
		request, refusal := slirp4netns.Decode(buffer[:n])
		if err != nil || !errors.Is(refusal, slirp4netns.ErrIncomplete) {
			return request, refusal
		}
	}
}

// complain says in the log why a change failed: clients are told next to nothing.
// Their own mistakes are their business.
func (s *Server) complain(request slirp4netns.Request, err error) {
	switch r := request.(type) {
	case slirp4netns.AddHostFwd:
		s.log.Warn("slirp4netns API: the port is not published", "proto", r.Proto,
			"host", r.HostAddr, "host_port", r.HostPort, "guest", r.GuestAddr, "guest_port", r.GuestPort, "cause", err)
	case slirp4netns.RemoveHostFwd:
		s.log.Warn("slirp4netns API: nothing is removed", "id", r.ID, "cause", err)
	}
}
