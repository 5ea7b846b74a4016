package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/hostconf"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/slirpapi"
	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/agent/reap"
	"github.com/postern-net/postern/userns/agent/term"
	"github.com/postern-net/postern/userns/seam"
)

// killWithin is how long the end of the container's last processes is waited for;
// the agent gives up a little earlier (agent.KillWithin).
const killWithin = 4 * time.Second

// grace is how long the command has after the SIGTERM that follows the end of
// ExitFD before everything is killed.
const grace = 2 * time.Second

// session is an instance in being. The main goroutine owns it.
type session struct {
	cfg  *Config
	kind Net
	log  *slog.Logger
	dir  *instance.Dir
	info instance.Info
	net  *network
	// ports and publisher are nil for PortDriverNone.
	ports     *portdriver.Registry
	publisher *publisher
	listeners atomic.Pointer[listenerWatch] // nil without PublishAuto
	conf      *hostconf.Watcher
	api       *apisock.Server
	slirp     *slirpapi.Server // nil unless asked for
	host      dns.ResolvConf

	signals  chan os.Signal
	exitFD   *fdWait
	overdue  <-chan time.Time
	idle     <-chan time.Time // time to give memory back
	gone     <-chan struct{}  // the attached namespaces' end
	guest    <-chan arrival   // a virtual machine's connection, nil unless awaited
	agent    *agentProc       // nil for Attach
	jobs     jobs
	furnish  bool // the agent is ready
	started  bool // the command was told to start
	over     bool
	exitCode int
}

// open makes what Run and Attach both begin with.
func open(cfg *Config, kind Net) (*session, error) {
	s := &session{cfg: cfg, kind: kind, log: logger(cfg), signals: catch()}
	var err error
	if s.dir, s.info.Name, err = openDir(cfg); err != nil {
		return nil, err
	}
	s.net = newNetwork(cfg, s.log)
	if !kind.hasEngine() {
		return s, nil
	}
	if err := s.net.start(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	for _, step := range []func() error{s.writeFiles, s.openPorts} {
		if err := step(); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// openDir takes the instance's directory and name.
func openDir(cfg *Config) (*instance.Dir, string, error) {
	if cfg.StateDir != "" {
		name := cfg.Name
		if name == "" {
			name = instance.Generate()
		}
		dir, err := instance.Create(cfg.StateDir)
		return dir, name, err
	}
	root, err := instance.Places{RuntimeDir: cfg.RuntimeDir}.Root()
	if err != nil {
		return nil, "", err
	}
	return instance.CreateNamed(root, cfg.Name)
}

func logger(cfg *Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogJSON {
		return slog.New(slog.NewJSONHandler(cfg.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(cfg.Stderr, options))
}

// writeFiles reads the host's resolver configuration and writes the container's.
func (s *session) writeFiles() (err error) {
	if !s.kind.served() {
		return nil // the command keeps the host's
	}
	if s.host, err = hostconf.Read(hostconf.Path); err != nil {
		// Name service fails until the file can be read; the rest works.
		s.log.Warn("no name servers", "cause", err)
	}
	s.net.resolver(s.host)
	if err := s.dir.WriteResolvConf(resolvConf(s.cfg, s.host)); err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "" // then it has no line
	}
	if s.cfg.RootlessKit.Hosts {
		return s.dir.WriteHosts(keptHosts(s.log, hostname))
	}
	return s.dir.WriteHosts(hostsFile(s.cfg.Plan, hostname))
}

// watch starts what may report from now on: the host's files, the control
// socket, and ExitFD.
func (s *session) watch() (err error) {
	if s.kind.served() {
		s.conf = hostconf.Watch(hostconf.Path, s.host)
	}
	if s.cfg.ExitFD != nil {
		if s.exitFD, err = waitFD(s.cfg.ExitFD, 0); err != nil {
			return err
		}
	}
	source := &status{cfg: s.cfg, dir: s.dir.Path(""), info: s.info, net: s.net, kind: s.kind}
	ports := s.portsSource()
	if s.api, err = apisock.Listen(s.dir.Socket(), source, ports); err != nil || s.cfg.Slirp4netnsSocket == "" {
		return err
	}
	if ports == nil {
		return errNoPorts
	}
	s.slirp, err = slirpapi.Listen(s.cfg.Slirp4netnsSocket, ports, s.cfg.Plan, s.log)
	return err
}

// run handles events until the instance is over; the error is why, if it failed.
func (s *session) run() error {
	var agentEvents chan agentEvent
	if s.agent != nil {
		agentEvents = s.agent.events
	}
	var hostChanges <-chan dns.ResolvConf
	if s.conf != nil {
		hostChanges = s.conf.Changes()
	}
	for !s.over {
		var err error
		select {
		case ev := <-s.net.events:
			err = s.engineEvent(ev)
		case <-s.net.timer.C:
			err = s.net.due()
		case ev := <-agentEvents:
			err = s.agentEvent(ev)
		case sig := <-s.signals:
			s.signal(sig.(unix.Signal))
		case host := <-hostChanges:
			s.follow(host)
		case <-s.net.express.nested.C():
			s.net.express.nest(s.log)
		case <-s.gone:
			s.over = true
		case guest := <-s.guest:
			err = s.welcome(guest)
		case <-s.exitFD.C():
			s.leave()
		case <-s.idle:
			rest()
		case <-s.overdue:
			s.agent.send(&handoff.AgentKill{})
			s.overdue = nil
		}
		if errors.Is(err, errNobodyLeft) {
			s.log.Info("the instance is over", "cause", err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// engineEvent passes an engine's event to the network and starts the command
// when that was the last thing missing.
func (s *session) engineEvent(ev engineEvent) error {
	ready, err := s.net.handle(ev)
	s.publisher.follow(s.net.current())
	if err != nil || ready == nil {
		return err
	}
	if err := s.serveByEngine(); err != nil || s.started {
		return err
	}
	if ready.Notice != "" {
		notify(s.cfg.Stderr, ready.Notice)
	}
	return s.begin()
}

// begin starts the command, or announces the attached network, once the engine
// and, if there is one, the agent are ready.
func (s *session) begin() error {
	if s.started || s.kind.hasEngine() && !s.net.state().ready || s.agent != nil && !s.furnish {
		return nil
	}
	if err := s.publishInside(); err != nil {
		return err
	}
	s.started = true
	now := s.net.state()
	s.info.Endpoint, s.info.TCP, s.info.TCPWhy = s.kind.endpoint(now.kind), now.tcp.Path, now.tcp.Why
	if err := s.dir.Publish(s.info); err != nil {
		return err
	}
	if err := s.announce(); err != nil {
		return err
	}
	s.agent.send(&handoff.AgentStart{Foreground: s.jobs.start()})
	s.idle = time.After(restAfter)
	return nil
}

// announce tells ReadyFD.
func (s *session) announce() error {
	f := s.cfg.ReadyFD
	if f == nil {
		return nil
	}
	s.cfg.ReadyFD = nil
	_, err := f.WriteString("1")
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil && !errors.Is(err, unix.EPIPE) { // a reader that left is no reason to fail
		return fmt.Errorf("write to --ready-fd: %w", err)
	}
	return nil
}

// agentEvent acts on what the agent reports.
func (s *session) agentEvent(ev agentEvent) error {
	defer seam.CloseAll(ev.files)
	switch m := ev.message.(type) {
	case *handoff.AgentNetNS:
		return s.detached(ev.files)
	case *handoff.AgentReady:
		for _, line := range m.Notices {
			s.log.Info(line)
		}
		s.furnish = true
		return s.begin()
	case *handoff.AgentFailed:
		s.exitCode = m.Code
		s.over = true
		s.jobs.takeBack()
		notify(s.cfg.Stderr, m.Reason)
	case *handoff.AgentStopped:
		s.jobs.stopped(unix.Signal(m.Signal))
	case *handoff.AgentExited:
		s.exitCode = m.Code
		if m.Signal != 0 {
			s.exitCode = exitSignal + m.Signal
		}
		s.jobs.end(unix.Signal(m.Signal))
		s.over = true
	case nil:
		return fmt.Errorf("run the command: the agent ended before it: %s", describe(ev))
	}
	return nil
}

// describe says how the agent's process ended.
func describe(ev agentEvent) string {
	switch {
	case ev.err != nil:
		return ev.err.Error()
	case ev.status.Signaled():
		return fmt.Sprintf("killed by signal %d (%s)", int(ev.status.Signal()), ev.status.Signal())
	}
	return fmt.Sprintf("exit code %d", ev.status.ExitStatus())
}

// signal passes a signal on. Before there is a command, and for Attach, the
// signals that ask to end do so.
func (s *session) signal(sig unix.Signal) {
	if s.agent != nil && s.started {
		s.jobs.forward(sig)
		return
	}
	if sig == unix.SIGHUP && s.agent == nil && s.started && !term.Controlled() {
		s.replaceEngine()
		return
	}
	switch sig {
	case unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT:
		s.over = true
		s.exitCode = ExitOK // asked to end, and ended
		if s.agent != nil {
			s.exitCode = exitSignal + int(sig)
		}
	case unix.SIGTSTP:
		_ = term.StopSelf() // as the user asked; if it cannot be, we go on
	}
}

// replaceEngine is what SIGHUP asks a daemon for: a fresh start. Listeners and the
// interface stay, flows are reset. A process with a terminal is told by SIGHUP that
// the terminal is gone, so there it means the end.
func (s *session) replaceEngine() {
	s.log.Info("SIGHUP: replacing the engine")
	if err := s.net.replace(); err != nil {
		s.log.Warn("the engine could not be replaced; another attempt follows", "cause", err)
	}
	s.publisher.follow(s.net.current())
}

// leave is the end of ExitFD: the command is asked, then made to end.
func (s *session) leave() {
	s.exitFD.close()
	s.exitFD = nil
	if s.agent == nil || !s.started {
		s.over = true
		return
	}
	s.agent.send(&handoff.AgentSignal{Signal: int(unix.SIGTERM)})
	s.overdue = time.After(grace)
}

// follow takes a change of the host's resolver configuration over.
func (s *session) follow(host dns.ResolvConf) {
	s.host = host
	s.net.resolver(host)
	if err := s.dir.WriteResolvConf(resolvConf(s.cfg, host)); err != nil {
		s.log.Warn("the container's resolv.conf keeps its old search list", "cause", err)
	}
	s.log.Info("the host's name servers changed", "servers", s.net.upstream, "search", s.net.search)
}

// close ends everything that is left: first the terminal, which the user sees, then
// the processes, then the files. Giving up the interface and the watches makes the
// kernel wait for all its processors, some 15 ms each, so that is done at the same
// time as the agent ends.
func (s *session) close() error {
	s.jobs.takeBack()
	var parts sync.WaitGroup
	if s.conf != nil {
		parts.Go(s.conf.Close)
	}
	s.listeners.Load().close() // before the registry that it uses
	if s.ports != nil {
		parts.Go(s.ports.Close)
	}
	parts.Go(s.net.close)
	if s.api != nil {
		parts.Go(s.api.Close)
	}
	if s.slirp != nil {
		parts.Go(s.slirp.Close)
	}
	if s.agent != nil {
		s.agent.finish()
	}
	s.exitFD.close()
	parts.Wait()
	var left error
	if s.agent != nil {
		left = adopted()
	}
	_ = s.jobs.terminal.Close()
	return errors.Join(left, s.dir.Close())
}

// adopted ends what an agent that was killed left behind, which is ours by
// adoption. All other children have been waited for by now.
func adopted() error {
	if err := reap.KillAll(time.Now().Add(killWithin)); err != nil {
		return fmt.Errorf("clean up after the command: %w", err)
	}
	return nil
}
