package supervisor

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"github.com/postern-net/postern/userns/express"
)

// nestWatch waits for the first network that is nested in the container's: only then do
// published ports need rules for it. One lives as long as the express path, whatever
// becomes of engines.
type nestWatch struct {
	found chan struct{} // closed when there is one
	stop  *os.File      // closing it wakes the goroutine
	wake  *os.File
	done  sync.WaitGroup
}

// watchNested starts to wait. The path must stay open until close.
func watchNested(path *express.Path, log *slog.Logger) (*nestWatch, error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w := &nestWatch{found: make(chan struct{}), stop: stop, wake: wake}
	w.done.Go(func() {
		switch err := path.AwaitNested(wake); {
		case err == nil:
			close(w.found)
		case !errors.Is(err, os.ErrClosed):
			// Not knowing is like finding one: it costs some speed.
			log.Warn("published ports are ready for nested containers from the start", "cause", err)
			close(w.found)
		}
	})
	return w, nil
}

// C is closed when a nested network has been found; nil for a nil nestWatch.
func (w *nestWatch) C() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.found
}

// close ends the waiting.
func (w *nestWatch) close() {
	if w == nil {
		return
	}
	_ = w.stop.Close()
	w.done.Wait()
	_ = w.wake.Close()
}

// nest lets published ports lead to nested containers, now that there may be some.
func (w *expressway) nest(log *slog.Logger) {
	w.nested.close()
	w.nested = nil // not twice
	if err := w.path.Nest(); err != nil {
		log.Warn("published ports do not lead to nested containers", "cause", err)
	}
}
