package relay

import "time"

// Timer is a function that is to be called later.
type Timer struct {
	owner *timers
	at    time.Time
	fn    func()
	index int // in the heap, -1 when not there
}

// After calls fn on the loop's thread once d has passed, not before, and a little
// later when the loop is busy.
func (l *Loop) After(d time.Duration, fn func()) *Timer {
	t := &Timer{owner: &l.timers, at: time.Now().Add(d), fn: fn}
	l.timers.push(t)
	return t
}

// Stop keeps the function from being called, unless it was already.
func (t *Timer) Stop() {
	if t.index >= 0 {
		t.owner.remove(t.index)
	}
}

// timers is a binary heap, the next one first.
type timers struct {
	heap []*Timer
}

// next returns how long it is until a timer is due: 0 if one is, negative if there
// is none.
func (ts *timers) next() time.Duration {
	if len(ts.heap) == 0 {
		return -1
	}
	return max(time.Until(ts.heap[0].at), 0)
}

// fire calls what is due. A timer that a call adds has to wait for the next time.
func (ts *timers) fire() {
	if len(ts.heap) == 0 {
		return
	}
	for now := time.Now(); len(ts.heap) > 0 && !ts.heap[0].at.After(now); {
		t := ts.heap[0]
		ts.remove(0)
		t.fn()
	}
}

func (ts *timers) push(t *Timer) {
	t.index = len(ts.heap)
	ts.heap = append(ts.heap, t)
	ts.up(t.index)
}

func (ts *timers) remove(i int) {
	ts.heap[i].index = -1
	last := len(ts.heap) - 1
	moved := ts.heap[last]
	ts.heap[last] = nil
	ts.heap = ts.heap[:last]
	if i == last {
		return
	}
	ts.put(i, moved)
	ts.down(i)
	ts.up(i)
}

func (ts *timers) put(i int, t *Timer) {
	ts.heap[i] = t
	t.index = i
}

func (ts *timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !ts.heap[i].at.Before(ts.heap[parent].at) {
			return
		}
		ts.swap(i, parent)
		i = parent
	}
}

func (ts *timers) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(ts.heap) {
			return
		}
		if right := child + 1; right < len(ts.heap) && ts.heap[right].at.Before(ts.heap[child].at) {
			child = right
		}
		if !ts.heap[child].at.Before(ts.heap[i].at) {
			return
		}
		ts.swap(i, child)
		i = child
	}
}

func (ts *timers) swap(i, j int) {
	a, b := ts.heap[i], ts.heap[j]
	ts.put(i, b)
	ts.put(j, a)
}
