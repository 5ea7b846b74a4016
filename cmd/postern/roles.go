package main

import (
	"os"
	"runtime"

	"github.com/postern-net/postern/cmd/postern/internal/engineproc"
	"github.com/postern-net/postern/cmd/postern/internal/netnskeep"
	"github.com/postern-net/postern/userns/agent"
)

// roleOf returns what this process is when it is not the user's postern: an
// engine or an agent that a supervisor has started with that argv[0] and a control
// socket. No environment variable and no flag leads there. It is asked before the
// command line is looked at, so that a role starts as fast as a Go program can.
//
// The main goroutine is locked to the main thread from the start (main.go): the
// supervisor and the agent fork from that thread only, because a parent-death
// signal follows the thread that forked. The engine forks nothing and must not
// pay for it.
func roleOf(args []string) func() int {
	if len(args) == 0 {
		return nil
	}
	switch args[0] {
	case engineproc.Name:
		return func() int {
			nameProcess(engineproc.Name)
			runtime.UnlockOSThread()
			return engineproc.Main()
		}
	case netnskeep.Name:
		return func() int {
			nameProcess(netnskeep.Name)
			return netnskeep.Main(os.Args)
		}
	case agent.Name:
		return func() int {
			nameProcess(agent.Name)
			return agent.Main(os.Args[1:])
		}
	}
	return nil
}

// nameProcess sets the name that ps(1) and top(1) show; executed through
// /proc/self/exe, the process would be called "exe". Without /proc it stays so.
func nameProcess(name string) { _ = os.WriteFile("/proc/self/comm", []byte(name), 0) }
