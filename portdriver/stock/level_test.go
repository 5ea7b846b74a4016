package stock

import (
	"testing"
	"time"
)

func TestMaxFor(t *testing.T) {
	for _, c := range []struct {
		limit uint64
		want  int
	}{{0, 1}, {16, 1}, {64, 4}, {1024, 64}, {20000, 512}, {1 << 30, 512}, {1<<64 - 1, 512}} {
		if got := MaxFor(c.limit); got != c.want {
			t.Errorf("limit %d: %d, want %d", c.limit, got, c.want)
		}
	}
}

func TestRaised(t *testing.T) {
	for _, c := range []struct {
		level, most int
		lasted      time.Duration
		want        int
	}{
		{16, 512, 0, 32}, {16, 512, quick - 1, 32}, {16, 512, quick, 16}, {16, 512, time.Hour, 16},
		{300, 512, 0, 512}, {512, 512, 0, 512}, {4, 4, 0, 4},
		{1, 512, time.Hour, 2}, {8, 512, 0, 16}, {9, 512, 0, 16}, {1, 4, 0, 2}, {3, 4, 0, 4},
	} {
		if got := raised(c.level, c.most, c.lasted); got != c.want {
			t.Errorf("level %d of %d, lasted %v: %d, want %d", c.level, c.most, c.lasted, got, c.want)
		}
	}
}

func TestLowered(t *testing.T) {
	for _, c := range []struct{ level, most, taken, want int }{
		{512, 512, 0, 256}, {512, 512, 127, 256}, {512, 512, 128, 512}, {32, 512, 0, 16}, {16, 512, 0, 16}, {20, 512, 0, 16}, {4, 4, 0, 4},
	} {
		if got := lowered(c.level, c.most, c.taken); got != c.want {
			t.Errorf("level %d of %d, %d taken: %d, want %d", c.level, c.most, c.taken, got, c.want)
		}
	}
}

// TestLowWater: with a level of any size something is ordered before or when the
// shelf is empty, and a full shelf orders nothing.
func TestLowWater(t *testing.T) {
	for level := 1; level <= MaxLevel; level++ {
		if n := low(level); n < 1 || n > level {
			t.Fatalf("level %d has the low-water mark %d", level, n)
		}
	}
}
