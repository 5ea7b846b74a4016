package rootlesskit

import (
	"log/slog"
	"time"
)

// Config is what both drivers need. The zero value serves for the child.
type Config struct {
	// StateDir is RootlessKit's state directory; required for the parent.
	StateDir string
	// MaxFlows is how many connections there may be. 0 stands for as many as the
	// limit of descriptors allows.
	MaxFlows int
	// Logger is told of what goes wrong outside of a call. May be nil.
	Logger *slog.Logger
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

const (
	// socketName is the socket between parent and child, in the state directory. Its
	// leading dot keeps it from those that look for RootlessKit's own files.
	socketName = ".postern-ports.sock"
	// opaqueSocket is the key of its path in what the child is told.
	opaqueSocket = "postern.socketpath"
	// hello is the child's message: that its two descriptors are the user and the
	// network namespace. The number is that of the protocol.
	hello = "postern ports 1"
)

// grace is how long a client waits for a server that is just starting. RootlessKit's
// builtin driver tries for a quarter of a second, and callers have come to rely on it:
// its own test suite does.
const grace = 500 * time.Millisecond

// meeting bounds how long parent and child wait for each other. They are started
// together; only a machine under load makes it more than some milliseconds.
const meeting = 30 * time.Second
