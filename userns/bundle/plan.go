package bundle

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/postern-net/postern/userns"
)

// Plan is what a prepared bundle shall say.
type Plan struct {
	// UID and GID are the id maps of the container; both nil leaves the maps and the
	// user namespace as they are.
	UID, GID userns.Map
	// KeepMaps leaves maps of more than one id, which somebody made on purpose.
	KeepMaps bool
	// Hook is called at createRuntime, createContainer and poststop.
	Hook Hook
	// Annotations, with their full names, become the only ones of our Prefix.
	Annotations map[string]string
	// ResolvConf and Hosts are the contents of the container's files.
	ResolvConf, Hosts []byte
}

// Hook is a program for the runtime to call.
type Hook struct {
	// Path is absolute. Args are its arguments, the program's name first; hookEvent
	// in them stands for the event's name.
	Path string
	Args []string
	// Env is all of its environment. It must not be empty, or the runtime's own, or
	// the image's, takes its place.
	Env []string
	// Timeout in seconds.
	Timeout int
}

// EventPlace stands for the event's name in a Hook's Args.
const EventPlace = "\x00event"

// at is the hook for an event.
func (h Hook) at(event string) specs.Hook {
	args := make([]string, 0, len(h.Args))
	for _, a := range h.Args {
		if a == EventPlace {
			a = event
		}
		args = append(args, a)
	}
	timeout := h.Timeout
	return specs.Hook{Path: h.Path, Args: args, Env: h.Env, Timeout: &timeout}
}

// isOurs reports whether a hook is one that some postern has put there: the path
// may have changed, the words have not.
func isOurs(h specs.Hook) bool {
	return len(h.Args) >= 3 && h.Args[0] == HookWords[0] && h.Args[1] == HookWords[1] && h.Args[2] == HookWords[2]
}

// HookWords are what the Args of every hook of ours begin with.
var HookWords = [3]string{"postern", "oci", "hook"}

// hookEvents are when the hook is called. At createContainer it is called in the
// container's namespaces, which not every runtime shows us from outside.
var hookEvents = []string{"createRuntime", "createContainer", "poststop"}

// events are all at which a hook of ours may stand.
var events = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
