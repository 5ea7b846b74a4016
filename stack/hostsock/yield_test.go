package hostsock

import (
	"testing"
	"time"
)

func TestCourtesy(t *testing.T) {
	var c courtesy
	at := time.Unix(1000, 0)
	if c.due(crowd-1, at) {
		t.Error("makes way after few messages")
	}
	c.took(at, at.Add(longTurn))
	if at = at.Add(longTurn); !c.due(crowd, at) {
		t.Error("makes no way after a reader's turn")
	}
	const turn = 3 * longTurn
	c.took(at, at.Add(turn))
	if at = at.Add(turn); c.due(crowd, at.Add(selfish*turn-1)) {
		t.Error("makes way again at once for somebody who took the processor for long")
	}
	if !c.due(crowd, at.Add(selfish*turn)) {
		t.Error("does not make way again")
	}
}
