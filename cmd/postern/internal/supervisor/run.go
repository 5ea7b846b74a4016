package supervisor

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/agent/reap"
	"github.com/postern-net/postern/userns/agent/term"
	"github.com/postern-net/postern/userns/join"
)

// setupWithin bounds the making of the namespaces, of which newuidmap's questions
// to a directory service may take the longest.
const setupWithin = time.Minute

// Run makes an instance, runs the command in it, and returns the command's exit
// code when that has ended and nothing of it is left. An error means that postern
// itself failed; the code is ExitFailed then. It must be called on the main thread
// by the main goroutine.
func Run(ctx context.Context, cfg RunConfig) (exitCode int, err error) {
	if err := cfg.prepare(); err != nil {
		return ExitFailed, err
	}
	if err := reap.Subreaper(); err != nil {
		return ExitFailed, err
	}
	s, err := open(&cfg.Config, cfg.Net)
	if err != nil {
		return ExitFailed, err
	}
	err = s.enter(ctx, &cfg)
	if err == nil {
		err = s.run()
	}
	if err != nil {
		s.exitCode = ExitFailed
	}
	return s.exitCode, errors.Join(err, s.close())
}

// enter makes the namespaces, sends the agent to work, and connects the network.
func (s *session) enter(ctx context.Context, cfg *RunConfig) error {
	ctx, cancel := context.WithTimeout(ctx, setupWithin)
	defer cancel()
	s.jobs.terminal = term.Open()
	s.jobs.interactive = term.Is(int(cfg.Stdin.Fd())) && term.Is(int(cfg.Stdout.Fd()))
	var err error
	if s.agent, err = startAgent(ctx, cfg, s.dir.Path("")); err != nil {
		return err
	}
	s.jobs.agent = s.agent
	if line := s.agent.process.Maps.Notice; line != "" {
		notify(cfg.Stderr, line)
	}
	if cfg.EvacuateCgroup2 != "" {
		if err := evacuate(cfg.EvacuateCgroup2, s.agent.process.PID, s.log); err != nil {
			return err
		}
	}
	if err := s.sendSetup(cfg); err != nil {
		return err
	}
	s.describeRun(cfg)
	if cfg.Net.hasEngine() && !cfg.DetachNetNS { // else the agent sends what to connect, see detached
		target, err := join.OpenPID(s.agent.process.PID)
		if err != nil {
			return err
		}
		if err := s.connect(target); err != nil {
			return err
		}
	}
	return s.watch()
}

func (s *session) sendSetup(cfg *RunConfig) (err error) {
	setup := &handoff.AgentSetup{
		Propagation: cfg.Propagation,
		CopyUp:      cfg.CopyUp,
		PIDNS:       cfg.PIDNS,
		HostNet:     cfg.Net == NetHost,
		Loopback:    !cfg.Net.served() && (cfg.Net != NetHost || cfg.DetachNetNS),
		Reaper:      cfg.reaps(),
		Cgroup2:     cfg.EvacuateCgroup2 != "",
	}
	if cfg.DetachNetNS {
		if setup.NetNS, err = s.dir.MakeNetNS(); err != nil {
			return err
		}
		s.info.NetNS = setup.NetNS
	} else if cfg.Net.served() {
		setup.ResolvConf, setup.Hosts = s.dir.ResolvConf(), s.dir.Hosts()
	}
	return s.agent.handSetup(setup, s.jobs.terminal.File(), cfg.Passed.Files)
}

// describeRun fills in what the world may know.
func (s *session) describeRun(cfg *RunConfig) {
	s.describe(cfg.Command)
	_ = s.info.SetChild(s.agent.process.PID) // it may have ended, which is the next event
}

// restGC is the collector's target of a process that mostly waits: its live heap
// is about a MiB, so a small target costs nothing.
const restGC = 25

// restAfter keeps the work of that out of the life of short commands.
const restAfter = time.Second

// rest gives back the memory that starting took.
func rest() {
	debug.SetGCPercent(restGC)
	debug.FreeOSMemory()
}
