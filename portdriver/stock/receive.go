package stock

import (
	"errors"
	"log/slog"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
)

// Receive delivers what arrives on from, in messages of join.Target.SendSockets, until
// that ends. Who sends them ran inside the container's network namespace, so nothing
// about them is believed. A message that is lost because descriptors have run out is
// ordered again.
func (s *Stock) Receive(from *fdpass.Conn, log *slog.Logger) {
	var body [1]byte
	var fds []int
	for {
		n, got, err := from.RecvRaw(body[:], fds[:0])
		switch {
		case errors.Is(err, fdpass.ErrNoDescriptors), errors.Is(err, fdpass.ErrTruncated):
			log.Debug("sockets for published ports were lost", "cause", err)
		case err != nil:
			return
		case n == 1 && int(body[0]) < handoff.NumSocketKinds:
			s.Deliver(handoff.SocketKind(body[0]), got)
		default:
			closeAll(got)
		}
		fds = got
	}
}
