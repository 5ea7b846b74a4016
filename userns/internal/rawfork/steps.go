package rawfork

import (
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DieWithParent makes the kernel send sig when the forking thread ends
// (PR_SET_PDEATHSIG); 0 takes it back. A change of the child's ids takes it back
// too (prctl(2)), so it belongs before and after one.
func (s *Script) DieWithParent(sig unix.Signal) {
	s.Call("ask for a signal at the parent's end", unix.SYS_PRCTL, Int(unix.PR_SET_PDEATHSIG), Int(int(sig)))
}

// CheckParent ends the script when the parent is gone already: it may have died
// before DieWithParent. The control socket tells, since getppid(2) is 0 in a new
// pid namespace whether or not the parent lives.
func (s *Script) CheckParent() {
	s.Add(Step{
		What: "check that the parent lives",
		Nr:   unix.SYS_RECVFROM,
		Args: [6]Arg{Control.Arg(), s.Bytes(make([]byte, 1)), Int(1), Int(unix.MSG_PEEK | unix.MSG_DONTWAIT)},
		// Nothing to read is the good answer; 0 is the end of the parent's side.
		Least:  1,
		Ignore: [3]syscall.Errno{unix.EAGAIN},
	})
}

// Wait stops the child until GoOn.
func (s *Script) Wait() {
	s.Add(Step{
		What:  "wait for the parent",
		Nr:    unix.SYS_READ,
		Args:  [6]Arg{Control.Arg(), s.Bytes(make([]byte, 1)), Int(1)},
		Least: 1,
	})
}

// Undumpable keeps others from tracing the child and from reading its memory and
// its descriptors through /proc (PR_SET_DUMPABLE, proc(5)). An execve ends it.
// The child's /proc files belong to root afterwards: its id maps can no longer be
// written by an ordinary user.
func (s *Script) Undumpable() {
	s.Call("protect the forked child", unix.SYS_PRCTL, Int(unix.PR_SET_DUMPABLE), Int(0))
}

// Jump goes on at the label: getpid(2) never is 0.
func (s *Script) Jump(to Label) {
	s.Add(Step{What: "go on", Nr: unix.SYS_GETPID, NonZero: to})
}

// ForkSibling forks once more: the new child is our child too (CLONE_PARENT), in
// the pid namespace that the script joined before, and goes on with the next step.
// The first one goes on at the label; d receives the new one's pidfd.
func (s *Script) ForkSibling(d *Descriptors, first Label) {
	s.Add(Step{
		What: "fork in the pid namespace", Nr: unix.SYS_CLONE, NonZero: first,
		Args: cloneArgs(unix.CLONE_PARENT|unix.CLONE_PIDFD, Pin(s, d.Next())),
	})
}

// cloneArgs are clone's arguments (clone(2): on s390x the first two trade places).
func cloneArgs(flags int, pidfd Arg) [6]Arg {
	if runtime.GOARCH == "s390x" {
		return [6]Arg{Int(0), Int(flags), pidfd}
	}
	return [6]Arg{Int(flags), Int(0), pidfd}
}

// sendPauses is how long the child waits before it tries a send again: together
// longer than an engine needs to come to its senses, a third of a second.
var sendPauses = []time.Duration{time.Millisecond, 4 * time.Millisecond, 16 * time.Millisecond, 64 * time.Millisecond, 256 * time.Millisecond}

// Send sends one byte over the control socket, with the descriptors that earlier
// steps put into d.
func (s *Script) Send(d *Descriptors) {
	s.SendMessage("send descriptors", Control.Arg(), d.Message(s, 0), unix.MSG_NOSIGNAL)
}

// SendMessage sends a message with descriptors over a socket, and tries again a few
// times when its receiver has not made room, or when more descriptors of this user's
// are on their way than we may open: ETOOMANYREFS counts those of all of a user's
// processes (unix(7)).
func (s *Script) SendMessage(what string, to, message Arg, flags int) {
	sent := s.NewLabel()
	send := Step{What: what, Nr: unix.SYS_SENDMSG, NonZero: sent, Args: [6]Arg{to, message, Int(flags)}}
	for _, d := range sendPauses {
		try := send
		try.Ignore = [3]syscall.Errno{unix.EAGAIN, unix.ETOOMANYREFS, unix.ENOBUFS}
		s.Add(try)
		pause := unix.NsecToTimespec(d.Nanoseconds())
		s.Call("wait for the receiver", unix.SYS_NANOSLEEP, Pin(s, &pause), Int(0))
	}
	s.Add(send)
	s.Place(sent)
}
