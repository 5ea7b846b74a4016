package slirp4netns

// Refusal is the reason for which a request is refused, in slirp4netns' own words.
// Clients show it to their users and search it, so that every byte counts.
type Refusal string

// The refusals, in the order in which they are found.
const (
	// ErrTooLarge says that a request is longer than MaxRequest.
	ErrTooLarge Refusal = "too large message"
	// ErrJSON says that a request is no JSON text. See ErrIncomplete.
	ErrJSON Refusal = "cannot parse JSON"
	// ErrObject says that a request is JSON, but not an object.
	ErrObject Refusal = "json_object() failed"
	// ErrNoExecute says that there is no string "execute".
	ErrNoExecute Refusal = "no execute found"
	// ErrExecute says that there is no such command.
	ErrExecute Refusal = "unknown execute"

	// ErrAddProto and its like say which argument is absent or wrong.
	ErrAddProto     Refusal = "add_hostfwd: bad arguments.proto"
	ErrAddHostAddr  Refusal = "add_hostfwd: bad arguments.host_addr"
	ErrAddHostPort  Refusal = "add_hostfwd: bad arguments.host_port"
	ErrAddGuestAddr Refusal = "add_hostfwd: bad arguments.guest_addr"
	ErrAddGuestPort Refusal = "add_hostfwd: bad arguments.guest_port"
	// ErrAdd says that the port cannot be published: it may be in use, or privileged.
	ErrAdd Refusal = "add_hostfwd: slirp_add_hostfwd failed"

	// ErrRemoveID says that the id is no number, or nobody's.
	ErrRemoveID Refusal = "remove_hostfwd: bad arguments.id"
	// ErrRemove says that the port is still published.
	ErrRemove Refusal = "remove_hostfwd: slirp_remove_hostfwd failed"
)

// Error implements error; it is the answer's "desc".
func (r Refusal) Error() string { return "bad request: " + string(r) }

// incomplete is ErrJSON for a text that may go on.
type incomplete struct{ error }

// ErrIncomplete is the ErrJSON of a text that is the beginning of a right one: a
// client may be about to send the rest.
var ErrIncomplete error = incomplete{ErrJSON}

// Unwrap makes it an ErrJSON.
func (i incomplete) Unwrap() error { return i.error }
