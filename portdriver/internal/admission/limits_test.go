package admission

import (
	"testing"

	"github.com/postern-net/postern/portdriver"
)

func TestMayPend(t *testing.T) {
	for _, c := range []struct {
		each, all int64
		want      bool
	}{
		{0, 0, true}, {MaxPendingEach - 1, MaxPendingEach - 1, true}, {MaxPendingEach, MaxPendingEach, false},
		{MaxPendingEach - 1, 500, true}, {MaxPendingEach, 500, false},
		{3, portdriver.MaxPending, true}, {4, portdriver.MaxPending, false}, {4, portdriver.MaxPending - 1, true},
	} {
		if got := MayPend(c.each, c.all); got != c.want {
			t.Errorf("%d of %d: %v", c.each, c.all, got)
		}
	}
}
