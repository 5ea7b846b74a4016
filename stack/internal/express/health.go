package express

import (
	"sync"
	"sync/atomic"
	"time"
)

// health judges whether the way through the container's kernel works at all: its root
// may have flushed our rules, or a program of his has put others before them. The zero
// value is in good health. It is safe for concurrent use.
type health struct {
	until    atomic.Int64 // end of the pause, in Unix nanoseconds; 0 if there was none
	failures atomic.Int32 // in a row

	mu    sync.Mutex    // guards pause
	pause time.Duration // the last one
}

// paused reports whether nothing shall go this way now.
func (h *health) paused() bool {
	until := h.until.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// worked notes a success.
func (h *health) worked() {
	if h.failures.Load() == 0 && h.until.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures.Store(0)
	h.until.Store(0)
	h.pause = 0
}

// failed notes a failure. It returns the length of the pause that begins now, 0 if
// none does. After a pause one more failure is enough for the next one.
func (h *health) failed() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.paused() || h.failures.Add(1) < maxFailures {
		return 0
	}
	h.failures.Store(maxFailures - 1)
	h.pause = min(max(2*h.pause, firstPause), longestPause)
	h.until.Store(time.Now().Add(h.pause).UnixNano())
	return h.pause
}
