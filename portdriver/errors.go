package portdriver

import "errors"

// The reasons for which a rule is refused, for errors.Is. An error that is none of
// them comes from the kernel or the engine.
var (
	// ErrSpec says that a Spec can never be right.
	ErrSpec = errors.New("invalid port spec")
	// ErrConflict says that another rule or another process has the port.
	ErrConflict = errors.New("the port is taken")
	// ErrNotFound says that there is no such rule, or no such inherited listener.
	ErrNotFound = errors.New("not found")
	// ErrLimit says that MaxRules or MaxListeners is reached.
	ErrLimit = errors.New("too many published ports")
	// ErrClosed says that the Registry is closed.
	ErrClosed = errors.New("publishing has ended")
)

// marked is an error that is also one of the reasons, without the reason's own text.
type marked struct {
	error
	reason error
}

func (m *marked) Unwrap() []error { return []error{m.error, m.reason} }

// mark makes err one of the reasons.
func mark(err, reason error) error { return &marked{err, reason} }
