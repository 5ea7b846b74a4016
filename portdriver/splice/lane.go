package splice

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/postern-net/postern/stack/relay"
)

// lane is a loop with what is about to be a flow of it.
type lane struct {
	*relay.Loop
	starting atomic.Int64
}

// load is how many flows the lane has or will have.
func (l *lane) load() int { return l.Flows() + int(l.starting.Load()) }

// run runs fn on the loop's thread, or here if there is none any more.
func (l *lane) run(fn func()) {
	if !l.Do(fn) {
		fn()
	}
}

// slack is how many more flows the listener's own lane may have than another one.
// Waking another thread costs more than half of a short connection (two processors,
// one client: 90 µs of processor time instead of 140), which pays only for flows that
// stay; those add up.
const slack = 4

// choose returns the lane for a connection that was accepted here.
func (d *Driver) choose(here *lane) *lane {
	best, least := here, here.load()-slack
	for _, l := range d.lanes {
		if n := l.load(); n < least {
			best, least = l, n
		}
	}
	return best
}

// pauses is the listeners that have paused, the first one first. Whatever frees
// something lets one go on: it may find that it has to pause again, and is last then.
type pauses struct {
	n  atomic.Int64 // the list's length, to be looked at without the lock
	mu sync.Mutex   // guards the list and every listener's paused
	// list is of *listener.
	list list.List
}

// add appends a listener that has just paused.
func (p *pauses) add(ln *listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ln.paused == nil {
		ln.paused = p.list.PushBack(ln)
	}
	p.n.Store(int64(p.list.Len()))
}

// remove takes a listener out that resumes or ends.
func (p *pauses) remove(ln *listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(ln)
}

func (p *pauses) removeLocked(ln *listener) {
	if ln.paused != nil {
		p.list.Remove(ln.paused)
		ln.paused = nil
	}
	p.n.Store(int64(p.list.Len()))
}

// next takes out the first listener, nil if there is none.
func (p *pauses) next() *listener {
	if p.n.Load() == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.list.Front()
	if first == nil {
		return nil
	}
	ln := first.Value.(*listener)
	p.removeLocked(ln)
	return ln
}

// freed tells that a place, a descriptor or a pending connection has come free.
func (d *Driver) freed() {
	if ln := d.waiters.next(); ln != nil {
		ln.lane.Do(ln.resume)
	}
}
