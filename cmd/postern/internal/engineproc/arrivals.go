package engineproc

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
)

// arrivals takes the sockets that come from the container's network namespace and
// puts them into the stock. Who sends them ran inside that namespace, so nothing
// about them is believed; the stock looks at each.
type arrivals struct {
	conn *fdpass.Conn
	done sync.WaitGroup
}

func receiveSockets(f *os.File, into *stock.Stock, log *slog.Logger) (*arrivals, error) {
	conn, err := fdpass.NewConn(f)
	if err != nil {
		return nil, err
	}
	a := &arrivals{conn: conn}
	a.done.Go(func() { a.run(into, log) })
	return a, nil
}

func (a *arrivals) run(into *stock.Stock, log *slog.Logger) {
	var body [1]byte
	fds := make([]int, 0, 256)
	for {
		n, got, err := a.conn.RecvRaw(body[:], fds)
		switch {
		case errors.Is(err, fdpass.ErrNoDescriptors), errors.Is(err, fdpass.ErrTruncated):
			// Without descriptors to spare there is nothing to put them in; the
			// stock orders again.
			log.Debug("sockets of the container's network namespace were lost", "cause", err)
		case err != nil:
			return
		case n == 1 && int(body[0]) < handoff.NumSocketKinds:
			into.Deliver(handoff.SocketKind(body[0]), got)
		default:
			for _, fd := range got {
				_ = unix.Close(fd)
			}
		}
	}
}

func (a *arrivals) close() {
	_ = a.conn.Close()
	a.done.Wait()
}
