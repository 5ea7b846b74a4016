package rootlesskit

import (
	"log/slog"
	"os"
	"sync"

	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/join"
)

// supply fills a stock with sockets of the container's network namespace. Orders are
// carried out by the stock's own goroutine; another one, which Close awaits, takes
// what arrives.
type supply struct {
	target *join.Target
	log    *slog.Logger
	stock  *stock.Stock
	to     *os.File // where sockets are sent
	from   *fdpass.Conn
	done   sync.WaitGroup
}

func newSupply(target *join.Target, log *slog.Logger) (*supply, error) {
	to, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, err
	}
	from, err := fdpass.NewConn(theirs)
	if err != nil {
		to.Close()
		return nil, err
	}
	s := &supply{target: target, log: log, to: to, from: from}
	s.stock = stock.New(s.order, 0)
	s.done.Go(func() { s.stock.Receive(from, log) })
	return s, nil
}

// order has sockets made. The stock asks again for what does not come.
func (s *supply) order(kind handoff.SocketKind, n int) {
	if err := s.target.SendSockets(s.to, kind, n); err != nil {
		s.log.Warn("no sockets for published ports", "kind", kind, "cause", err)
	}
}

// close ends both goroutines and waits for them.
func (s *supply) close() {
	s.stock.Close()
	s.from.Close()
	s.done.Wait()
	s.to.Close()
}
