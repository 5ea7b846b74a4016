package supervisor

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/agent"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/seam"
	"github.com/postern-net/postern/userns/spawn"
	"github.com/postern-net/postern/userns/subid"
)

// agentProc is the agent process. Its goroutine turns messages and the end into
// events; finish ends and awaits both.
type agentProc struct {
	process *spawn.Process
	conn    *seam.Conn
	events  chan agentEvent
	stopped chan struct{} // closed by finish: nobody takes events any more
	done    chan struct{} // closed when the process has ended and the goroutine with it
}

// agentEvent is a message of the agent or, with a nil message, its end.
type agentEvent struct {
	message handoff.Message
	files   []*os.File // that came with it, the taker's to close
	status  unix.WaitStatus
	err     error // of waiting
}

// startAgent makes the namespaces with an agent in them.
func startAgent(ctx context.Context, cfg *RunConfig, stateDir string) (*agentProc, error) {
	maps, err := spawn.PlanMapsFrom(ctx, cfg.Map, subid.Kind(cfg.Subids))
	if err != nil {
		return nil, err
	}
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	defer theirs.Close()
	conn, err := seam.New(ours)
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	process, err := spawn.Start(ctx, spawn.Config{
		Maps:      maps,
		HostNet:   cfg.DetachNetNS || cfg.Net == NetHost,
		PID:       cfg.PIDNS,
		IPC:       cfg.IPCNS,
		UTS:       cfg.UTSNS,
		Cgroup:    cfg.CgroupNS,
		Argv:      append([]string{agent.Name}, cfg.Command...),
		Env:       environment(cfg.Env, stateDir, os.Geteuid(), os.Getegid(), cfg.Passed),
		Files:     []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr, theirs},
		Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	a := &agentProc{
		process: process, conn: conn,
		events: make(chan agentEvent), stopped: make(chan struct{}), done: make(chan struct{}),
	}
	go a.receive()
	return a, nil
}

// receive handles messages until the agent has closed its end or stop ours, then
// waits for the process.
func (a *agentProc) receive() {
	defer close(a.done)
	for {
		m, files, err := a.conn.Recv()
		if err != nil {
			break
		}
		a.emit(agentEvent{message: m, files: files})
	}
	status, err := a.process.Wait()
	a.emit(agentEvent{status: status, err: err})
}

func (a *agentProc) emit(ev agentEvent) {
	select {
	case a.events <- ev:
	case <-a.stopped:
		seam.CloseAll(ev.files)
	}
}

// send sends a message. An agent that cannot be told anything is ending, which
// is an event of its own.
func (a *agentProc) send(m handoff.Message, files ...*os.File) {
	if a != nil {
		_ = a.conn.Send(m, files...)
	}
}

// finish ends the agent and everything below it: told by the end of the control
// socket, or because the command has ended, the agent kills its descendants and
// ends.
func (a *agentProc) finish() {
	close(a.stopped)
	_ = a.conn.Close()
	deadline := time.NewTimer(killWithin)
	defer deadline.Stop()
	select {
	case <-a.done:
	case <-deadline.C:
		_ = a.process.Kill()
		<-a.done
	}
	_ = a.process.Close()
}
