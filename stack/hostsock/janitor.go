package hostsock

import (
	"sync"
	"time"
)

// Janitor calls a function now and then from a goroutine of its own. One serves
// all entries of a table; a timer for each would cost more than it is worth.
type Janitor struct {
	closing    sync.Once
	stop, done chan struct{}
}

// NewJanitor starts to call work every quarter of the shortest of the idle
// times, but not more often than every 10 ms nor less often than every 5 s. Idle
// times of zero and below are none.
func NewJanitor(work func(), idle ...time.Duration) *Janitor {
	j := &Janitor{stop: make(chan struct{}), done: make(chan struct{})}
	go j.run(work, period(idle))
	return j
}

func period(idle []time.Duration) time.Duration {
	p := 5 * time.Second
	for _, d := range idle {
		if d > 0 {
			p = min(p, d/4)
		}
	}
	return max(p, 10*time.Millisecond)
}

func (j *Janitor) run(work func(), every time.Duration) {
	defer close(j.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-j.stop:
			return
		case <-tick.C:
			work()
		}
	}
}

// Close waits for a call that is under way; none follows. It may be called again.
func (j *Janitor) Close() {
	j.closing.Do(func() { close(j.stop) })
	<-j.done
}
