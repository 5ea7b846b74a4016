package stock

import "time"

// The measures of a shelf.
const (
	// firstLevel is how many sockets a kind that is needed starts with, and keeps
	// when it is idle.
	firstLevel = 16
	// MaxLevel bounds every level: enough for 5,000 connections a second if an
	// order takes a tenth of one. Larger ones were no faster.
	MaxLevel = 512
	// quick is the time in which a level that fits lasts at least until the next
	// order; a shelf that was emptied earlier gets a higher one.
	quick = 250 * time.Millisecond
	// idle is how often it is looked whether a level is still needed.
	idle = 5 * time.Second
	// patience is how long an order may bring nothing before it is given up. A
	// visit to the namespace takes milliseconds, and a port has to serve again
	// within a second after a failure.
	patience = 300 * time.Millisecond
	// straggling is how long the rest of an order may take once something has come:
	// what one visit makes is sent at once. A rest that is missing was lost because
	// there were no descriptors for it.
	straggling = 50 * time.Millisecond
	// careful is how long after an order that failed none is larger.
	careful = time.Second
	// rest is how long after Shed nothing is ordered: the descriptors were given
	// back for someone else.
	rest = 100 * time.Millisecond
)

// MaxFor returns the highest level for a process with a limit of descriptors
// (RLIMIT_NOFILE, getrlimit(2)): a sixteenth of it, so that all kinds together take
// no more than a quarter.
func MaxFor(limit uint64) int {
	return int(max(1, min(limit/16, MaxLevel)))
}

// mostUsed is how many used sockets of a kind are kept: beside a full level, still well
// within what connections that have ended have left free.
func mostUsed(most int) int { return (most + 1) / 2 }

// floor is the lowest level of a kind that is needed.
func floor(most int) int { return min(firstLevel, most) }

// low is the low-water mark of a level: with fewer sockets more are ordered.
func low(level int) int { return (level + 1) / 2 }

// raised is the level of a shelf that fell below its low-water mark so long after
// it was filled. One that failed orders have brought below the floor recovers.
func raised(level, most int, lasted time.Duration) int {
	switch {
	case level < floor(most):
		return min(2*level, floor(most))
	case lasted < quick:
		return min(2*level, most)
	}
	return level
}

// halved is the level after an order that failed.
func halved(level int) int { return max(1, level/2) }

// lowered is the level of a shelf from which so many sockets were taken while it
// was watched for the time idle.
func lowered(level, most, taken int) int {
	if taken >= low(level)/2 {
		return level
	}
	return max(level/2, floor(most))
}
