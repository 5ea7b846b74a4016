package datagram

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock"
)

// flow returns the flow of k, making one if there is none, or nil if there cannot
// be one.
func (s *Service) flow(k key) *Flow {
	if f := s.table.find(k); f != nil {
		return f
	}
	routes := s.cfg.Routes(k.from, k.listener.Target)
	if len(routes) == 0 || k.from.Port() == 0 {
		return nil // nowhere to go, or nowhere to reply to
	}
	f, evicted := s.table.insert(k, routes[0], s.age())
	if evicted != nil {
		evicted.end()
		s.cfg.Counters.Inc(portdriver.Evicted)
	}
	if f == nil {
		return nil
	}
	if err := f.connect(); err != nil {
		if s.table.remove(f) {
			f.end()
		}
		return nil
	}
	s.cfg.Counters.Inc(portdriver.Flows)
	return f
}

// maxConnects is how many sources are tried for one flow.
const maxConnects = 8

// connect gives the flow its way.
func (f *Flow) connect() error {
	var err error
	for range maxConnects {
		var way Way
		if way, err = f.key.listener.service.cfg.Container.Connect(f); err == nil {
			if f.table.attach(f, way) {
				return nil
			}
			way.Close()
			return net.ErrClosed
		}
		if !errors.Is(err, ErrSourceTaken) || !f.OtherSource() {
			break
		}
	}
	return err
}

// toContainer passes a train on. It is called by one goroutine.
func (s *Service) toContainer(t *train) {
	f := t.flow
	if f.ended.Load() {
		return
	}
	f.touch(s.age())
	lost := f.way.Send(t.payload, t.segment())
	s.cfg.Counters.Add(portdriver.Datagrams, uint64(t.cars-lost))
	s.cfg.Counters.Add(portdriver.DatagramsLost, uint64(lost))
}

// toClient sends a train back. It is called by one goroutine. A reply that cannot
// be sent now is lost like on any wire.
func (s *Service) toClient(t *train) {
	f := t.flow
	f.answered(s.age())
	n, err := s.writer.Send(f.key.listener.socket, hostsock.Packet{
		To: f.key.from, From: f.key.source(), Interface: f.key.zone, Segment: t.segment(), Payload: t.payload,
	})
	s.cfg.Counters.Add(portdriver.Replies, uint64(n))
	if err != nil && !errors.Is(err, os.ErrClosed) {
		s.cfg.Counters.Add(portdriver.RepliesLost, uint64(t.cars-n))
	}
}

// lost counts datagrams that no flow could be had for.
func (s *Service) lost(payload []byte, segment int) {
	s.cfg.Counters.Add(portdriver.DatagramsLost, uint64(Count(payload, segment)))
}

// source is the address that a reply is sent from: the one that the client sent to,
// unless the socket has only that.
func (k key) source() netip.Addr {
	if k.listener.socket.LocalAddr().Addr().IsUnspecified() {
		return k.local
	}
	return netip.Addr{}
}
