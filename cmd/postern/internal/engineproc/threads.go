package engineproc

import (
	"runtime"

	"github.com/postern-net/postern/stack/relay"
)

// loops is how many threads relay between kernel sockets: half of the processors, for
// the clients and servers do the other half of the work. A second thread on a machine
// with two makes 32 clients wait for each other: 77,000 instead of 85,000 requests
// a second.
func loops() int { return max(1, runtime.NumCPU()/2) }

// threads are those that published ports and the express path share. They start with
// the first use, for most containers use neither for a while. One goroutine uses it.
type threads struct{ loops *relay.Loops }

func (t *threads) get() (*relay.Loops, error) {
	if t.loops != nil {
		return t.loops, nil
	}
	var err error
	t.loops, err = relay.NewLoops(loops())
	return t.loops, err
}

func (t *threads) close() {
	if t.loops != nil {
		t.loops.Close()
	}
}
