package apisock

import (
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/postern-net/postern/userns/fdpass"
)

// gate is a listener that lets only our user and root in, and only so many.
type gate struct {
	*net.UnixListener
	uid   int
	slots chan struct{}
}

func newGate(l *net.UnixListener, uid int) *gate {
	return &gate{UnixListener: l, uid: uid, slots: make(chan struct{}, maxConns)}
}

// Accept returns the next connection of an allowed user. It waits while all
// connections are in use; a client waits in the kernel's queue meanwhile.
func (g *gate) Accept() (net.Conn, error) {
	for {
		g.slots <- struct{}{}
		c, err := g.AcceptUnix()
		if err != nil {
			<-g.slots
			return nil, err
		}
		if peer, err := fdpass.PeerCred(c); err == nil && (peer.Uid == 0 || int(peer.Uid) == g.uid) {
			return &conn{UnixConn: c, leave: sync.OnceFunc(func() { <-g.slots })}, nil
		}
		_ = c.Close()
		<-g.slots
	}
}

// conn gives its slot back when it is closed.
type conn struct {
	*net.UnixConn
	leave func()
}

func (c *conn) Close() error {
	defer c.leave()
	return c.UnixConn.Close()
}

// local refuses requests that carry a web page's marks: an Origin, or the name of
// a network host (DNS rebinding). Clients of a unix socket make a host up: curl
// takes the URL's, RootlessKit's client "rootlesskit", Docker's "docker".
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || strings.ContainsAny(r.Host, ".:[") {
			fail(w, http.StatusForbidden, errForeign)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// discard swallows net/http's complaints about clients.
func discard() *log.Logger { return log.New(io.Discard, "", 0) }
