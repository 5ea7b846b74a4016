package express

import (
	"testing"
	"time"
)

func TestPausesGrowAndEnd(t *testing.T) {
	var h health
	for range maxFailures - 1 {
		if d := h.failed(); d != 0 || h.paused() {
			t.Fatalf("rests for %v too early", d)
		}
	}
	for _, want := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute} {
		if d := h.failed(); d != want || !h.paused() {
			t.Errorf("rests for %v, want %v", d, want)
		}
		if d := h.failed(); d != 0 {
			t.Errorf("a failure meanwhile begins another rest, of %v", d)
		}
		h.until.Store(time.Now().UnixNano())
		if h.paused() {
			t.Error("rests for ever")
		}
	}
	h.worked()
	if d := h.failed(); d != 0 || h.paused() {
		t.Errorf("after a success one failure is enough for a rest of %v", d)
	}
	h.worked()
	for range maxFailures {
		h.failed()
	}
	if h.pause != firstPause {
		t.Errorf("rests for %v after a success, want %v", h.pause, firstPause)
	}
}

// It is failures in a row that count.
func TestSuccessBetweenFailures(t *testing.T) {
	var h health
	for range 100 {
		h.failed()
		h.failed()
		h.worked()
	}
	if h.paused() {
		t.Error("rests")
	}
}

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		limit uint64
		want  int
	}{{0, 1}, {1024, 256}, {20000, 5000}, {1 << 20, 16000}, {1<<64 - 1, 16000}} {
		if got := capacity(c.limit); got != c.want {
			t.Errorf("limit %d: %d flows, want %d", c.limit, got, c.want)
		}
	}
}
