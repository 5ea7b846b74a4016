package relay

import "golang.org/x/sys/unix"

// slot is what an event is for: a watch, or one side of a flow.
type slot struct {
	watch *Watch
	flow  *Flow
	side  uint8
	// turn counts the users of the slot. It is part of what the kernel returns with
	// an event, so one for an earlier user finds nobody.
	turn uint32
}

// slots is a table of everything registered with a loop's epoll instance. The
// number of descriptors bounds it.
type slots struct {
	all  []slot
	free []uint32
}

// add takes a slot and returns its number.
func (t *slots) add(s slot) uint32 {
	if n := len(t.free); n > 0 {
		i := t.free[n-1]
		t.free = t.free[:n-1]
		s.turn = t.all[i].turn
		t.all[i] = s
		return i
	}
	t.all = append(t.all, s)
	return uint32(len(t.all) - 1)
}

// remove gives a slot back.
func (t *slots) remove(i uint32) {
	t.all[i] = slot{turn: t.all[i].turn + 1}
	t.free = append(t.free, i)
}

// find returns the slot that an event is for, nil if it has another user by now.
func (t *slots) find(i, turn uint32) *slot {
	if int(i) >= len(t.all) {
		return nil
	}
	s := &t.all[i]
	if s.turn != turn || s.watch == nil && s.flow == nil {
		return nil
	}
	return s
}

// event returns what is registered for slot i.
func (t *slots) event(i, events uint32) unix.EpollEvent {
	return unix.EpollEvent{Events: events, Fd: int32(i), Pad: int32(t.all[i].turn)}
}

// flows lists each flow once.
func (t *slots) flows() []*Flow {
	var list []*Flow
	for i := range t.all {
		if s := &t.all[i]; s.flow != nil && s.side == 0 {
			list = append(list, s.flow)
		}
	}
	return list
}
