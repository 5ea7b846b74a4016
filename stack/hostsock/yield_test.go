package hostsock

import (
	"testing"
	"time"
)

func TestCourtesy(t *testing.T) {
	var c courtesy
	at := time.Unix(1000, 0)
	rested := at.Add(time.Hour)
	c.took(at, at.Add(longTurn))
	if at = at.Add(longTurn); !c.due(rested, at) {
		t.Error("does not wait after a reader's turn")
	}
	if c.due(at, at) {
		t.Error("waits for a reader that has had its time")
	}
	const turn = 3 * longTurn
	c.took(at, at.Add(turn))
	if at = at.Add(turn); c.due(rested, at.Add(selfish*turn-1)) {
		t.Error("waits again at once, with somebody about who took the processor for long")
	}
	if !c.due(rested, at.Add(selfish*turn)) {
		t.Error("does not wait again")
	}
}

// A crowd of messages holds its socket back, and no other.
func TestCourtesyBySocket(t *testing.T) {
	var (
		c           courtesy
		busy, quiet Socket
	)
	start := time.Now()
	c.delivered(&quiet, crowd-1, start)
	if !quiet.rested.IsZero() {
		t.Error("few messages hold a socket back")
	}
	const messages = 1 << 40
	c.delivered(&busy, messages, start)
	if got := busy.rested.Sub(start); got != messages*pace {
		t.Errorf("a reader of %d messages has %v", messages, got)
	}
	c.resume = time.Time{} // what else runs here does not matter
	c.await(&quiet)        // and not until the other one's reader is done

	busy.rested = time.Now().Add(10 * time.Millisecond)
	for c.await(&busy); !c.resume.IsZero(); c.await(&busy) {
		c.resume = time.Time{}
	}
	if now := time.Now(); now.Before(busy.rested) {
		t.Errorf("received again %v too early", busy.rested.Sub(now))
	}
}
