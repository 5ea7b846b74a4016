package link

import (
	"sync"
	"time"
)

// Limits of ICMP errors to the container: Linux allows 1,000 a second by
// default (icmp(7), icmp_msgs_per_sec), in bursts of 50. The burst is larger
// here so that a parallel scan of a subnet gets true answers.
const (
	errorRate  = 1000
	errorBurst = 250
)

// bucket is a token bucket of errorRate and errorBurst. The zero value is full.
type bucket struct {
	mu   sync.Mutex // guards the fields below
	used float64
	last time.Time
}

// take reports whether another event is within the limits.
func (b *bucket) take() bool { return b.takeAt(time.Now()) }

func (b *bucket) takeAt(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = max(0, b.used-now.Sub(b.last).Seconds()*errorRate)
	b.last = now
	if b.used+1 > errorBurst {
		return false
	}
	b.used++
	return true
}
