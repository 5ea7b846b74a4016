package rootlesskit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

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
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		to.Close()
		from.Close()
		return nil, fmt.Errorf("ask for the limit of descriptors: %w", err)
	}
	s := &supply{target: target, log: log, to: to, from: from}
	s.stock = stock.New(s.order, stock.MaxFor(limit.Cur))
	s.done.Go(s.receive)
	return s, nil
}

// order has sockets made. The stock asks again for what does not come.
func (s *supply) order(kind handoff.SocketKind, n int) {
	if err := s.target.SendSockets(s.to, kind, n); err != nil {
		s.log.Warn("no sockets for published ports", "kind", kind, "cause", err)
	}
}

// receive puts into the stock what arrives. Who sends it ran inside the namespaces,
// so the stock looks at each socket.
func (s *supply) receive() {
	var body [1]byte
	for {
		n, fds, err := s.from.RecvRaw(body[:], nil)
		switch {
		case errors.Is(err, fdpass.ErrNoDescriptors), errors.Is(err, fdpass.ErrTruncated):
			s.log.Debug("sockets for published ports were lost", "cause", err)
		case err != nil:
			return
		case n == 1 && int(body[0]) < handoff.NumSocketKinds:
			s.stock.Deliver(handoff.SocketKind(body[0]), fds)
		default:
			closeFDs(fds)
		}
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// close ends both goroutines and waits for them.
func (s *supply) close() {
	s.stock.Close()
	s.from.Close()
	s.done.Wait()
	s.to.Close()
}
