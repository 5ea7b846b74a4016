// Package ocihook is what happens when an OCI runtime calls postern as a hook
// (runtime-spec, "runtime.md" and "config.md": POSIX-platform hooks).
//
//	runtime ─ state on stdin ─▶ hook createRuntime
//	                              settle: an instance for this container already?
//	                              start ─▶ postern oci serve   own session, no
//	                              wait  ◀─ "1"                 descriptor of the runtime's
//	        ◀─ exit code 0 ───────┘           │
//	        ─ state ─────────▶ hook createContainer: the network is there
//	container's process starts                │ waits for the pidfd of its init
//	container ends                            └─ ends, leaves nothing
//	        ─ state on stdin ─▶ hook poststop: makes sure of that
//
// At createRuntime and poststop the hook runs in the runtime's namespaces, that is,
// as the user on the host; the runtime waits for it with the container's init ready
// but for the network. At createContainer it runs in the container's namespaces,
// with the host's files still in view: there it sees that the network is there, or
// hands the namespaces over where they cannot be had from outside (handover.go).
//
// The server must not need poststop to end: runc calls it at delete only, and crun,
// whose run command adopts the server, waits for its end before it calls it.
//
// # What is believed
//
// The arguments of the hook stand in config.json, where prepare wrote them: they are
// the user's. Standard input is the runtime's, but its annotations may be an
// image's; they count if an argument says that prepare has written them. The
// environment and the working directory are not looked at, since a runtime passes
// on its own or the image's. No path that comes from the state is ever opened, nor
// one that leads below the container's root.
package ocihook

import "time"

const (
	// maxState bounds the state; annotations make it long, but not that long.
	maxState = 1 << 20
	// stateWithin is how long the runtime may take to write it.
	stateWithin = 10 * time.Second
	// readyWithin is how long the network may take. It must be less than Timeout.
	readyWithin = 20 * time.Second
	// settleWithin is how long an instance of the same container, left by an earlier
	// run, may take to end.
	settleWithin = 6 * time.Second
)

// Timeout is for config.json, seconds: after it the runtime kills the hook.
const Timeout = 40
