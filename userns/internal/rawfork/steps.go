package rawfork

import (
	"runtime"
	"syscall"

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

// Send sends one byte over the control socket, with the descriptors that earlier
// steps put into d.
func (s *Script) Send(d *Descriptors) {
	s.Call("send descriptors", unix.SYS_SENDMSG, Control.Arg(), d.Message(s, 0), Int(unix.MSG_NOSIGNAL))
}
