package admission

import (
	"github.com/postern-net/postern/portdriver"
)

// A connection is pending until the server has answered. The container's server or
// its root may see to it that none does, so a listener may have a part of all
// pending ones only; and when those are used up by some, every other listener still
// has a few.
const (
	// MaxPendingEach is a listener's part.
	MaxPendingEach = portdriver.MaxPending / 8
	minPendingEach = 4
)

// MayPend reports whether a listener with so many pending connections may accept one
// more when there are so many in all.
func MayPend(each, all int64) bool {
	return each < minPendingEach || each < MaxPendingEach && all < portdriver.MaxPending
}
