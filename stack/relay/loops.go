package relay

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrClosed is what Done gets for a flow that lived when its loop was closed.
var ErrClosed = errors.New("relay is closed")

// Loops relays between kernel sockets on some threads. NewLoops starts them, Close
// ends them. Its methods are safe for concurrent use.
type Loops struct {
	loops  []*Loop
	shared shared
}

// shared is what all loops of a Loops count together.
type shared struct {
	pipes   atomic.Int64 // that exist
	spliced atomic.Uint64
	copied  atomic.Uint64
	refused atomic.Uint64
	clocked atomic.Uint64
}

// Stats is what the loops hold and have counted.
type Stats struct {
	// Flows and Pipes are how many there are now.
	Flows, Pipes int
	// Spliced and Copied are bytes moved through a pipe and through our memory.
	Spliced, Copied uint64
	// PipesRefused is how often bulk data was copied because no pipe could be had:
	// all were in use, or the kernel refused one.
	PipesRefused uint64
	// Clocked is how often a direction began to be read by the clock.
	Clocked uint64
}

// NewLoops starts n loops, at least one. More than there are processors are of no use.
func NewLoops(n int) (*Loops, error) {
	ls := &Loops{}
	for range max(n, 1) {
		l, err := newLoop(&ls.shared)
		if err != nil {
			ls.Close()
			return nil, fmt.Errorf("start relay: %w", err)
		}
		ls.loops = append(ls.loops, l)
		go l.run()
	}
	return ls, nil
}

// Close resets every flow, runs what Do has accepted, ends the loops and waits for
// them. It must not be called on a loop's thread. Watches and timers end without a
// call.
func (ls *Loops) Close() {
	for _, l := range ls.loops {
		l.close()
	}
	for _, l := range ls.loops {
		<-l.ended
	}
}

// All returns the loops, always in the same order.
func (ls *Loops) All() []*Loop { return ls.loops }

// Least returns the loop with the fewest flows.
func (ls *Loops) Least() *Loop {
	least := ls.loops[0]
	for _, l := range ls.loops[1:] {
		if l.flows.Load() < least.flows.Load() {
			least = l
		}
	}
	return least
}

// Stats returns the loops' numbers.
func (ls *Loops) Stats() Stats {
	s := Stats{
		Pipes:        int(ls.shared.pipes.Load()),
		Spliced:      ls.shared.spliced.Load(),
		Copied:       ls.shared.copied.Load(),
		PipesRefused: ls.shared.refused.Load(),
		Clocked:      ls.shared.clocked.Load(),
	}
	for _, l := range ls.loops {
		s.Flows += int(l.flows.Load())
	}
	return s
}
