package splice

import (
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
)

const (
	// stockWait is how long a client waits for a socket of the container's netns.
	// The stock orders again after half a second, and an engine's or supervisor's
	// replacement takes one.
	stockWait = 5 * time.Second
	// maxWaiting is how many clients wait for a kind of socket, more stay in the kernel's
	// backlog. Each holds a descriptor, and where these are short the sockets need
	// them. An order brings as many or more, so a higher number would not have
	// anyone served earlier.
	maxWaiting = 8
	// keepBytes is how much a connection may have moved for its socket to be used
	// again: buffers start at less (tcp_rmem, tcp_wmem in tcp(7)) and grow with use.
	keepBytes = 1 << 20
	// gracePause is how long after a refusal a server is tried again (Config.Grace).
	gracePause = 10 * time.Millisecond
	// acceptBudget is how many connections a listener may accept before others on
	// its loop have their turn.
	acceptBudget = 64
	// deadPause is how long a listener rests that cannot accept for another reason
	// than a shortage: someone who has a copy has shut it down.
	deadPause = time.Second
	// backlogPause is how long a unix socket's full backlog is given before the next
	// try, the first time; it doubles up to maxBacklogPause. connect(2) does not wait
	// there, but says EAGAIN.
	backlogPause    = 5 * time.Millisecond
	maxBacklogPause = 200 * time.Millisecond
	// lookups is how many paths one listener may have looked up at a time.
	lookups = 8
	// closePatience is how long Close waits for the file system.
	closePatience = 2 * time.Second
	// complainEvery bounds how often a shortage is logged.
	complainEvery = time.Minute
)

// capacity is how many connections there may be with a limit of descriptors. The
// reserve is for the stock (see stock.MaxFor), the relay's pipes, listeners and
// everything else that the engine has open.
func capacity(limit uint64) int {
	reserve := min(limit/4, 2048) + min(limit/4, 128)
	return admission.Capacity(portdriver.MaxTCP, limit, int(reserve))
}
