package slirpapi

import (
	"net"
	"sync"
	"time"

	"github.com/postern-net/postern/userns/fdpass"
)

// maxConns is how many clients are served at the same time; the others wait in the
// kernel's queue. A client needs one connection, and that for a moment.
const maxConns = 32

// gate knows who may come in, and who is in.
type gate struct {
	uid   int
	slots chan struct{}
	// patience is how long a client may take for its request.
	patience time.Duration

	mu    sync.Mutex // guards conns
	conns map[*net.UnixConn]bool
}

func newGate(uid int) *gate {
	return &gate{
		uid: uid, slots: make(chan struct{}, maxConns), patience: requestTimeout,
		conns: make(map[*net.UnixConn]bool),
	}
}

// enter reports whether a client may be served.
func (g *gate) enter(c *net.UnixConn) bool {
	peer, err := fdpass.PeerCred(c)
	if err != nil || peer.Uid != 0 && int(peer.Uid) != g.uid {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns == nil {
		return false // closed
	}
	g.conns[c] = true
	return true
}

// leave closes a connection.
func (g *gate) leave(c *net.UnixConn) {
	g.mu.Lock()
	delete(g.conns, c)
	g.mu.Unlock()
	_ = c.Close()
}

// close closes every connection and lets no more in.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		_ = c.Close()
	}
	g.conns = nil
}
