package engineproc

import (
	"log/slog"
	"os"

	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/userns/seam"
)

// expressway is what the engine has for the express path.
type expressway struct {
	sockets  *stack.Express // nil without
	stock    *stock.Stock   // of sockets for datagrams; nil without
	arrivals *arrivals
}

// newExpressway takes the descriptors of handoff.Express over, in its order. On an
// error they stay the caller's.
func newExpressway(conn *seam.Conn, has handoff.Express, files []*os.File, threads *threads, log *slog.Logger) (*expressway, error) {
	x := &expressway{}
	if len(files) == 0 {
		return x, nil
	}
	loops, err := threads.get()
	if err != nil {
		return nil, err
	}
	x.sockets = &stack.Express{
		Diag: files[0], Loops: loops,
		Lost: func() { _ = conn.Send(&handoff.EngineExpressLost{}) }, // who cannot be told is gone
	}
	files = files[1:]
	for _, w := range []struct {
		on   bool
		into **os.File
	}{
		{has.TCP4, &x.sockets.TCP4}, {has.TCP6, &x.sockets.TCP6}, {has.UDP4, &x.sockets.UDP.Catch4}, {has.UDP6, &x.sockets.UDP.Catch6},
	} {
		if w.on {
			*w.into, files = files[0], files[1:]
		}
	}
	if len(files) == 0 {
		return x, nil
	}
	x.stock = stock.New(func(kind handoff.SocketKind, n int) {
		_ = conn.Send(&handoff.EngineOrder{Kind: kind, N: n})
	}, 0)
	x.sockets.UDP.Sockets = x.stock
	if x.arrivals, err = receiveSockets(files[0], x.stock, log); err != nil {
		x.stock.Close()
		return nil, err
	}
	return x, nil
}

// discard closes what no engine has taken over.
func (x *expressway) discard() {
	if s := x.sockets; s != nil {
		for _, f := range []*os.File{s.Diag, s.TCP4, s.TCP6, s.UDP.Catch4, s.UDP.Catch6} {
			if f != nil {
				_ = f.Close()
			}
		}
	}
}

// close ends the supply of sockets. The engine must have been closed.
func (x *expressway) close() {
	if x.arrivals != nil {
		x.arrivals.close()
	}
	if x.stock != nil {
		x.stock.Close()
	}
}
