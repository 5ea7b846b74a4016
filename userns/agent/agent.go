// Package agent is the process inside the container's namespaces that runs the
// user's command: root of the user namespace, and pid 1 where there is a pid
// namespace.
//
// Its life: it adopts orphans (PR_SET_CHILD_SUBREAPER) and, unless it was told
// otherwise, waits for them when they end; it furnishes the mount
// namespace (package furnish), says that it is ready, waits until the network
// works, starts the command in a process group of its own, hands signals to it
// and reports its stops and its end. When the command has ended, when the
// supervisor asks for it, or when the supervisor is gone (end of the control
// socket), it kills every process that is left and ends.
//
// What ends what, when a process is killed outright:
//
//   - the supervisor: the control socket ends, so the agent kills everything.
//     The parent-death signal is SIGCONT only, so that an agent that somebody
//     stopped wakes up to notice; SIGKILL would leave nobody to kill the rest.
//     As pid 1 the signal stays SIGKILL: the kernel then kills the namespace.
//   - the agent: the command has SIGKILL as its parent-death signal; everything
//     else is adopted by the supervisor, which kills it.
//
// A parent-death signal follows the thread that forked, not the process
// (prctl(2)), so the agent forks on its main thread only.
package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/agent/internal/furnish"
	"github.com/postern-net/postern/userns/agent/reap"
	"github.com/postern-net/postern/userns/agent/term"
	"github.com/postern-net/postern/userns/seam"
)

// Name is the agent's argv[0]; the command and its arguments follow it.
const Name = "postern-agent"

// Exit codes of a wrapper by convention of the shell and of env(1).
const (
	ExitFailed        = 125
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// KillWithin is how long the end of the last processes is waited for. They only
// take that long in uninterruptible sleep.
const KillWithin = 3 * time.Second

// Main runs the agent with the command in argv and returns its exit code. It
// must be called on the main thread, by the main goroutine. Without a command the
// process is the one that an agent has started to become the command (passed.go).
func Main(argv []string) int {
	runtime.LockOSThread()
	if len(argv) == 0 {
		return handOver()
	}
	conn, err := seam.Control()
	if err != nil {
		fmt.Fprintln(os.Stderr, "postern:", err)
		return ExitFailed
	}
	a := &agent{conn: conn, argv: argv, messages: make(chan incoming), children: make(chan os.Signal, 1)}
	if err := a.adopt(); err != nil {
		a.fail(ExitFailed, err)
		return ExitFailed
	}
	go a.receive()
	a.run()
	a.house.Close()
	a.slip.close()
	if err := reap.KillAll(time.Now().Add(KillWithin)); err != nil {
		fmt.Fprintln(os.Stderr, "postern: clean up after the command:", err)
	}
	return 0
}

// agent is the state of the main goroutine.
type agent struct {
	conn     *seam.Conn
	argv     []string
	messages chan incoming
	children chan os.Signal
	terminal *term.Terminal
	house    furnish.House
	// detached is the network namespace that the command is not in, until it has
	// been started; nil for none.
	detached *os.File
	// passed are the descriptors for the command until it has been started, slip is
	// how it was started with them, nil if it was without.
	passed []*os.File
	slip   *slip
	pid    int // of the command, 0 before and after its life
	// reaper says that orphans are waited for; without, they stay zombies until
	// the end, as children of a process do that knows only its command.
	reaper bool
}

// incoming is a message of the supervisor with its descriptors.
type incoming struct {
	message handoff.Message
	files   []*os.File
}

// adopt arranges who inherits orphans and what the death of our parent does.
func (a *agent) adopt() error {
	signal.Notify(a.children, unix.SIGCHLD)
	dropSignals()
	if os.Getpid() == 1 {
		return nil // the reaper of its namespace by birth
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGCONT), 0, 0, 0); err != nil {
		return fmt.Errorf("set parent-death signal: %w", err)
	}
	return reap.Subreaper()
}

// dropSignals catches what a terminal or kill(1) may send to our process group:
// the supervisor is the one to pass it on. Signals that were ignored when we
// were started stay so, for the command to inherit (nohup(1)). Caught signals
// are reset in the command by its execve.
func dropSignals() {
	for _, s := range []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM,
		unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGWINCH,
	} {
		if !signal.Ignored(s) {
			// Notify never blocks: a full channel drops the signal, which is all
			// that is wanted here.
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// receive passes messages on until the supervisor is gone; it ends with the process.
func (a *agent) receive() {
	defer close(a.messages)
	for {
		m, files, err := a.conn.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, "postern: agent:", err)
			}
			return
		}
		a.messages <- incoming{m, files}
	}
}

// run handles messages and the deaths of children until everything is to end.
func (a *agent) run() {
	for {
		select {
		case in, ok := <-a.messages:
			if !ok || !a.handle(in) {
				return
			}
		case <-a.children:
			if a.reap() {
				return
			}
		}
	}
}

// handle acts on a message and reports whether to go on.
func (a *agent) handle(in incoming) bool {
	switch m := in.message.(type) {
	case *handoff.AgentSetup:
		return a.setup(m, in.files)
	case *handoff.AgentStart:
		return a.start(m.Foreground)
	case *handoff.AgentSignal:
		a.signal(unix.Signal(m.Signal), m.Group)
	case *handoff.AgentContinue:
		a.resume(m.Foreground)
	case *handoff.AgentKill:
		return false
	}
	seam.CloseAll(in.files)
	return true
}

// setup furnishes the namespaces. The files are the terminal's, if there is one, and
// those for the command.
func (a *agent) setup(m *handoff.AgentSetup, files []*os.File) bool {
	if m.Terminal && len(files) > 0 {
		a.terminal, files = term.New(files[0]), files[1:]
	}
	a.passed = files
	a.reaper = m.Reaper
	detached, err := a.detach(m.NetNS, m.Loopback)
	if err != nil {
		return a.fail(ExitFailed, err)
	}
	house, notices, err := furnish.Furnish(furnish.Plan{
		Detached:    detached,
		NetNS:       m.NetNS,
		ResolvConf:  m.ResolvConf,
		Hosts:       m.Hosts,
		Propagation: m.Propagation,
		CopyUp:      m.CopyUp,
		Proc:        m.PIDNS,
		HostNet:     m.HostNet,
		Loopback:    m.Loopback,
		Cgroup2:     m.Cgroup2,
	})
	a.detached = detached
	if err != nil {
		return a.fail(ExitFailed, err)
	}
	a.house = house
	return a.conn.Send(&handoff.AgentReady{Notices: notices}) == nil
}

// detach makes the network namespace that is to be bound to path, if any, and hands
// it to the supervisor at once, which connects it while the rest is furnished.
func (a *agent) detach(path string, loopback bool) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	ns, err := furnish.NetNS(loopback)
	if err != nil {
		return nil, err
	}
	if err := a.conn.Send(&handoff.AgentNetNS{}, ns); err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("hand the network namespace over: %w", err)
	}
	return ns, nil
}

// fail reports an error and returns false, the end of run.
func (a *agent) fail(code int, err error) bool {
	if sendErr := a.conn.Send(&handoff.AgentFailed{Code: code, Reason: err.Error()}); sendErr != nil {
		fmt.Fprintln(os.Stderr, "postern:", err)
	}
	return false
}

// reap waits for all children that have changed state, or only for the command
// without a reaper, and reports whether the command is among the dead.
func (a *agent) reap() (ended bool) {
	for {
		var status unix.WaitStatus
		whom := -1
		if !a.reaper {
			whom = a.pid
		}
		if whom == 0 {
			return ended // no command, and 0 would mean our process group
		}
		pid, err := unix.Wait4(whom, &status, unix.WNOHANG|unix.WUNTRACED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return ended
		}
		if pid == a.pid && a.report(status) {
			ended = true
		}
	}
}

// report tells the supervisor of the command's change of state and returns
// whether it was its end. A supervisor that cannot be told is gone, which run
// learns from the control socket.
func (a *agent) report(status unix.WaitStatus) (ended bool) {
	switch {
	case status.Stopped():
		_ = a.conn.Send(&handoff.AgentStopped{Signal: int(status.StopSignal())})
		return false
	case status.Signaled():
		_ = a.conn.Send(&handoff.AgentExited{Signal: int(status.Signal())})
	case a.slip.failure() != nil:
		_ = a.failRun(a.slip.failure())
	default:
		_ = a.conn.Send(&handoff.AgentExited{Code: status.ExitStatus()})
	}
	a.pid = 0
	return true
}
