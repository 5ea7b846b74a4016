package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/engineproc"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/seam"
)

// self is our own program, whatever became of its path.
const self = "/proc/self/exe"

// engine is one engine process. Its goroutine turns messages and the end into
// events; stop ends and awaits both.
type engine struct {
	process *os.Process
	conn    *seam.Conn
	events  chan<- engineEvent
	supply  *supply // for published ports
	express *supply // for the express path
	// dials connects to unix sockets for published ports; nil before there are any.
	dials   atomic.Pointer[unixDials]
	stopped chan struct{} // closed by stop: nobody takes events any more
	done    sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	seq     uint64
	waiting map[uint64]chan<- handoff.Message
	ended   bool
}

// engineEvent is a message of an engine or, with a nil message, its end.
type engineEvent struct {
	from    *engine
	message handoff.Message
	end     string // how the process ended
}

// startEngine starts the process. The caller must be on the main thread.
func startEngine(stderr *os.File, events chan<- engineEvent, log *slog.Logger) (*engine, error) {
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	conn, err := seam.New(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, fmt.Errorf("start engine: %w", err)
	}
	process, err := forkEngine(stderr, theirs)
	_ = theirs.Close()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("start engine: %w", err)
	}
	e := &engine{
		process: process, conn: conn, events: events,
		stopped: make(chan struct{}),
		supply:  newSupply(log),
		express: newSupply(log),
		waiting: make(map[uint64]chan<- handoff.Message),
	}
	e.done.Add(1)
	go e.receive()
	return e, nil
}

// forkEngine starts our own program as an engine: in a process group of its own,
// out of the terminal's reach, without the user's environment, and not outliving
// us. It stays in our session, because Linux schedules sessions as groups
// (sched(7), autogroup): between two of them a round trip of the container waits
// for the engine's turn, 150 instead of 100 µs.
func forkEngine(stderr, control *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	return os.StartProcess(self, []string{engineproc.Name}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{null, null, stderr, control},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
	})
}

// receive handles messages until the engine has closed its end or stop ours,
// then makes sure that the process is gone.
func (e *engine) receive() {
	defer e.done.Done()
	for {
		m, files, err := e.conn.Recv()
		if err != nil {
			break
		}
		seam.CloseAll(files)
		switch m := m.(type) {
		case *handoff.EngineSnapshot:
			e.answer(m.Seq, m)
		case *handoff.EnginePortsAnswer:
			e.answer(m.Seq, m)
		case *handoff.EngineDial:
			e.dialUnix(m)
		case *handoff.EngineOrder:
			e.supplyOf(m.Kind).order(m.Kind, m.N)
		default:
			e.emit(engineEvent{from: e, message: m})
		}
	}
	_ = e.process.Kill() // an engine without a control socket serves nobody
	state, err := e.process.Wait()
	e.fail()
	end := fmt.Sprint(err)
	if err == nil {
		end = state.String()
	}
	e.emit(engineEvent{from: e, end: end})
}

func (e *engine) dialUnix(m *handoff.EngineDial) {
	if d := e.dials.Load(); d != nil {
		d.serve(e.conn, m)
		return
	}
	reply(e.conn, m.Seq, nil, unix.EACCES)
}

func (e *engine) emit(ev engineEvent) {
	select {
	case e.events <- ev:
	case <-e.stopped:
	}
}

// stop ends the process and waits for it.
func (e *engine) stop() {
	close(e.stopped)
	_ = e.conn.Close()
	e.done.Wait()
	e.supply.close()
	e.express.close()
}

// supplyOf returns who makes sockets of a kind.
func (e *engine) supplyOf(kind handoff.SocketKind) *supply {
	if kind == handoff.SocketExpressUDP4 || kind == handoff.SocketExpressUDP6 {
		return e.express
	}
	return e.supply
}

var errEngineGone = errors.New("the engine has ended")

// snapshot asks the engine for its state. It is safe for concurrent use.
func (e *engine) snapshot(ctx context.Context) (*handoff.EngineSnapshot, error) {
	m, err := e.ask(ctx, func(seq uint64) error {
		return e.conn.Send(&handoff.EngineSnapshotRequest{Seq: seq})
	})
	if err != nil {
		return nil, fmt.Errorf("ask the engine for its state: %w", err)
	}
	s, ok := m.(*handoff.EngineSnapshot)
	if !ok {
		return nil, fmt.Errorf("ask the engine for its state: it answers with %T", m)
	}
	return s, nil
}

// ask sends a question with a number of its own and waits for the answer that
// carries the same. It is safe for concurrent use.
func (e *engine) ask(ctx context.Context, send func(seq uint64) error) (handoff.Message, error) {
	wait, err := e.question(send)
	if err != nil {
		return nil, err
	}
	return wait(ctx)
}

// question sends a question; the function that it returns waits for the answer and
// has to be called once.
func (e *engine) question(send func(seq uint64) error) (wait func(context.Context) (handoff.Message, error), err error) {
	answer := make(chan handoff.Message, 1)
	e.mu.Lock()
	if e.ended {
		e.mu.Unlock()
		return nil, errEngineGone
	}
	e.seq++
	seq := e.seq
	e.waiting[seq] = answer
	e.mu.Unlock()
	if err := send(seq); err != nil {
		e.forget(seq)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
			err = errEngineGone // its end has not been noticed yet
		}
		return nil, err
	}
	return func(ctx context.Context) (handoff.Message, error) {
		defer e.forget(seq)
		select {
		case m := <-answer:
			if m == nil {
				return nil, errEngineGone
			}
			return m, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, nil
}

func (e *engine) forget(seq uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.waiting, seq)
}

// answer hands an answer to who asked; one that nobody waits for any more is
// dropped.
func (e *engine) answer(seq uint64, m handoff.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w, ok := e.waiting[seq]; ok {
		delete(e.waiting, seq)
		w <- m // has room for one
	}
}

// fail answers everyone who waits with nothing.
func (e *engine) fail() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
	for seq, w := range e.waiting {
		delete(e.waiting, seq)
		w <- nil
	}
}
