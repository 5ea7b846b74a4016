package datagram

import (
	"container/list"
	"net/netip"
)

// client is who flows are counted by. It exists while it has flows.
type client struct {
	addr netip.Addr // see clientOf
	// shares are the client's flows by whether they had a reply.
	shares [2]share
}

// share is the flows of one kind that one client has, from the one not used for
// longest to the one used last.
type share struct {
	flows list.List
	place *list.Element // in a ranking, nil while there are no flows
}

// clientOf returns what a client is counted by.
func clientOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	prefix, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a // no address: all such are one client
	}
	return prefix.Addr()
}

// ranking orders clients by how many flows of one kind they have. Numbers change by
// one at a time, so every operation takes constant time.
type ranking struct {
	kind int // index of client.shares
	// levels holds the clients by their number, those of one number from the one
	// that has had it for longest; there is no empty list and no level 0.
	levels map[int]*list.List
	top    int // the highest number
	total  int // of flows
}

// add appends a flow to its client's share and returns its place there.
func (r *ranking) add(c *client, f *Flow) *list.Element {
	s := &c.shares[r.kind]
	was := s.flows.Len()
	e := s.flows.PushBack(f)
	r.total++
	r.move(c, was)
	return e
}

// remove takes a flow out of its client's share.
func (r *ranking) remove(c *client, e *list.Element) {
	s := &c.shares[r.kind]
	was := s.flows.Len()
	s.flows.Remove(e)
	r.total--
	r.move(c, was)
}

// move puts a client from the level where it was to the one of its number now.
func (r *ranking) move(c *client, was int) {
	s := &c.shares[r.kind]
	now := s.flows.Len()
	if s.place != nil {
		level := r.levels[was]
		level.Remove(s.place)
		s.place = nil
		if level.Len() == 0 {
			delete(r.levels, was)
			if r.top == was {
				r.top = now // numbers change by one: nobody is in between
			}
		}
	}
	if now == 0 {
		return
	}
	level := r.levels[now]
	if level == nil {
		level = list.New()
		r.levels[now] = level
	}
	s.place = level.PushBack(c)
	r.top = max(r.top, now)
}

// first returns the client that has the most flows, nil if nobody has any. Among
// several it is the one whose number has not changed for longest.
func (r *ranking) first() *client {
	level := r.levels[r.top]
	if level == nil {
		return nil
	}
	return level.Front().Value.(*client)
}

// oldest returns the flow of a share that was not used for longest, or nil.
func (s *share) oldest() *Flow {
	if e := s.flows.Front(); e != nil {
		return e.Value.(*Flow)
	}
	return nil
}
