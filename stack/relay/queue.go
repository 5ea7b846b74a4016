package relay

// queue is the flows that have something to do, in the order in which they came. A
// flow is in it once at most.
type queue struct {
	first, last *Flow
	len         int
}

func (q *queue) empty() bool { return q.len == 0 }

func (q *queue) push(f *Flow) {
	if f.queued {
		return
	}
	f.queued = true
	if q.last == nil {
		q.first = f
	} else {
		q.last.next = f
	}
	q.last = f
	q.len++
}

// pop returns the first flow; there must be one.
func (q *queue) pop() *Flow {
	f := q.first
	q.first = f.next
	if q.first == nil {
		q.last = nil
	}
	f.next, f.queued = nil, false
	q.len--
	return f
}
