package portdriver

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
)

// leaveTime is how long the engine may take to close its copy of a UDP socket whose
// rule has ended. One that takes longer hangs, and is replaced.
const leaveTime = 10 * time.Second

// leave notes what e leaves behind: unlike a TCP listener a UDP socket cannot be
// ended from here.
func (r *Registry) leave(e *entry) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.leaving, func(_ netip.AddrPort, until time.Time) bool { return now.After(until) })
	for _, l := range e.rule.Listeners {
		if l.Network == NetUDP && slices.Contains(e.owned, l.File) && len(r.leaving) < MaxListeners {
			r.leaving[l.Bound] = now.Add(leaveTime)
		}
	}
}

// left reports whether a socket of ours may be what keeps an address from being
// bound.
func (r *Registry) left(at netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, until := range r.leaving {
		if other.Port() == at.Port() && covers(other.Addr(), at.Addr()) && time.Now().Before(until) {
			return true
		}
	}
	return false
}

// bindInet binds a socket, also where one of an ended rule still is.
func (r *Registry) bindInet(network Network, at netip.AddrPort) (*os.File, error) {
	f, err := bind.Inet(string(network), at)
	if network == NetUDP && errors.Is(err, unix.EADDRINUSE) && r.left(at) {
		return bind.Succeed(at)
	}
	return f, err
}
