package supervisor

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/agent/term"
)

// forwarded are the signals that are the command's business. SIGTSTP is here for
// the case that our group is in the foreground and the command's is not: the
// command has to stop first.
var forwarded = []os.Signal{
	unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM,
	unix.SIGWINCH, unix.SIGCONT, unix.SIGTSTP,
}

// catch takes the signals over. Those that were ignored when we were started
// (nohup(1), a background job of a shell without job control) stay ignored, for
// us and for the command. SIGPIPE is caught so that a log without a reader does
// not end the network.
func catch() chan os.Signal {
	c := make(chan os.Signal, 32) // more than there are kinds of signals; the kernel merges equal ones too
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return c
}

// jobs plays the wrapper's part in job control; the rules stand in package term.
type jobs struct {
	terminal *term.Terminal
	agent    *agentProc
	// handed says that the command's group has the terminal, from us.
	handed bool
	// interactive says that standard input and output are terminals.
	interactive bool
	// echo is until when a SIGCONT is taken for the one that ended our own stop, of
	// which Go tells us later. The command was continued then; once more could undo
	// the next stop that the user has typed meanwhile.
	echo time.Time
}

// echoTime is ample for a caught signal to reach us. Another SIGCONT in that time is
// wanted only if somebody has sent the command SIGSTOP meanwhile, and must be repeated.
const echoTime = time.Second

// start says whether the command shall start in the foreground.
func (j *jobs) start() (foreground bool) {
	j.handed = j.interactive && j.terminal.Ours()
	return j.handed
}

// forward passes a signal on to the command.
func (j *jobs) forward(s unix.Signal) {
	if s == unix.SIGCONT {
		if time.Now().After(j.echo) {
			j.resume()
		}
		j.echo = time.Time{}
		return
	}
	// What the terminal sends to our group it means for the whole job.
	fromTerminal := s == unix.SIGINT || s == unix.SIGQUIT || s == unix.SIGTSTP
	j.agent.send(&handoff.AgentSignal{Signal: int(s), Group: fromTerminal && !j.handed && j.terminal.Ours()})
}

// stopped follows a stop of the command.
func (j *jobs) stopped(s unix.Signal) {
	terminalStop := s == unix.SIGTTIN || s == unix.SIGTTOU
	if terminalStop && !j.handed && j.terminal.Ours() {
		j.resume() // it wants the terminal, and we have it
		return
	}
	j.takeBack()
	// We are on the main thread, as StopSelf wants. If it fails the command just
	// goes on.
	_ = term.StopSelf()
	if s != unix.SIGSTOP {
		j.resume()
		j.echo = time.Now().Add(echoTime)
	}
	// A command that somebody stopped by SIGSTOP goes on at SIGCONT only.
}

// resume continues the command, with the terminal if it is ours to give.
func (j *jobs) resume() {
	give := !j.handed && j.terminal.Ours()
	j.handed = j.handed || give
	j.agent.send(&handoff.AgentContinue{Foreground: give})
}

// takeBack makes our group the foreground group again if we gave that away.
func (j *jobs) takeBack() {
	if j.handed {
		_ = j.terminal.SetForeground(unix.Getpgrp()) // the terminal may be gone
		j.handed = false
	}
}

// end settles the terminal after the command ended, by the signal s if not 0.
func (j *jobs) end(s unix.Signal) {
	had := j.handed
	j.takeBack()
	if had && (s == unix.SIGINT || s == unix.SIGQUIT) {
		// The terminal's interrupt was for the whole job, which was our group
		// but for our handing the terminal over.
		signal.Ignore(s)
		_ = unix.Kill(0, s)
	}
}
