package engineproc

import (
	"log/slog"
	"os"
	"sync"

	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/userns/fdpass"
)

// arrivals takes the sockets that come from the container's network namespace and
// puts them into the stock.
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
	a.done.Go(func() { into.Receive(conn, log) })
	return a, nil
}

func (a *arrivals) close() {
	_ = a.conn.Close()
	a.done.Wait()
}
