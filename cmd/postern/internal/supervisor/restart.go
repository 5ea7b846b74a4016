package supervisor

import "time"

// Rules for engines that die. A crash by bad luck is repaired at once; a crash
// at every start is a defect that restarting only hides.
const (
	// maxQuickDeaths in a row end the instance.
	maxQuickDeaths = 5
	// quick is how long an engine has to live for its death not to count as quick.
	quick = 10 * time.Second
	// firstPause is before the second restart in a row; it doubles with each.
	// Together they stay below the second that a replacement may take.
	firstPause = 50 * time.Millisecond
	// firstRevival and maxRevival bound the pauses between attempts to make the
	// container's interface anew.
	firstRevival = 200 * time.Millisecond
	maxRevival   = 10 * time.Second
)

// deaths counts quick deaths in a row and says how long to pause. The zero value
// is ready.
type deaths struct {
	inARow int
}

// next records that an engine died after living for lived, and returns the pause
// before the next start, or false to give up.
func (d *deaths) next(lived time.Duration) (pause time.Duration, again bool) {
	if lived >= quick {
		d.inARow = 0
	}
	d.inARow++
	if d.inARow >= maxQuickDeaths {
		return 0, false
	}
	if d.inARow == 1 {
		return 0, true
	}
	return firstPause << (d.inARow - 2), true
}

// revivals grows the pause between attempts to bring an interface back.
type revivals struct {
	inARow int
}

// next records an attempt after the last interface lived for lived.
func (r *revivals) next(lived time.Duration) time.Duration {
	if lived >= quick {
		r.inARow = 0
	}
	pause := min(firstRevival<<min(r.inARow, 16), maxRevival)
	r.inARow++
	return pause
}
