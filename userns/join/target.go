package join

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotOwner is wrapped when the user namespace is not ours to enter. The text
// names its owner where the kernel tells.
var ErrNotOwner = errors.New("not the owner of the user namespace")

// Target is a network namespace and the user namespace to enter it through. It
// holds both in being until Close. Its methods may be called from several
// goroutines, Close after all others.
type Target struct {
	name     string // for errors: "process 123" or the netns's path
	netns    *os.File
	userns   *os.File
	pidfd    *os.File // nil for paths
	proc     *os.File // /proc/PID as a directory; nil for paths
	sameUser bool     // the user namespace is our own
	sameNet  bool     // the process's network namespace is our own
}

// OpenPID takes the namespaces of a living process. ESRCH when there is none,
// EACCES or ErrNotOwner when it is not ours to look at.
func OpenPID(pid int) (*Target, error) {
	name := "process " + strconv.Itoa(pid)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	t := &Target{name: name, pidfd: os.NewFile(uintptr(pidfd), "pidfd")}
	if err := t.openOf(pid); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// openOf opens the namespaces of the process behind t.pidfd.
func (t *Target) openOf(pid int) error {
	path := "/proc/" + strconv.Itoa(pid)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	t.proc = os.NewFile(uintptr(fd), path)
	if t.userns, err = t.openNS("user", unix.CLONE_NEWUSER); err != nil {
		return err
	}
	if t.netns, err = t.openNS("net", unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := t.Alive(); err != nil {
		return err
	}
	if t.sameNet, err = sameFile(t.netns, "/proc/self/ns/net"); err != nil {
		return err
	}
	return t.compare()
}

// UseNetNS makes the target's network namespace the one that path leads to, for a
// process that keeps one beside its own. It can be joined if the process's user
// namespace owns it, which joining finds out.
func (t *Target) UseNetNS(path string) error {
	f, err := openNSAt(nil, path, path, unix.CLONE_NEWNET)
	if err != nil {
		return err
	}
	t.netns.Close()
	t.netns, t.sameNet = f, false
	return nil
}

// openNS opens one namespace file of the process.
func (t *Target) openNS(kind string, want int) (*os.File, error) {
	f, err := openNSAt(t.proc, "ns/"+kind, t.proc.Name()+"/ns/"+kind, want)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		var st unix.Stat_t
		if serr := unix.Fstat(int(t.proc.Fd()), &st); serr == nil && st.Uid != uint32(os.Geteuid()) {
			return nil, fmt.Errorf("enter %s: it belongs to uid %d, we are uid %d: run as that user: %w: %w",
				t.name, st.Uid, os.Geteuid(), ErrNotOwner, err)
		}
	}
	return f, err
}

// Alive fails with ESRCH when the target's process has ended. A target made from
// paths has no process and is always alive.
func (t *Target) Alive() error {
	if t.pidfd == nil {
		return nil
	}
	poll := []unix.PollFd{{Fd: int32(t.pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	for err == unix.EINTR {
		n, err = unix.Poll(poll, 0)
	}
	if err == nil && n > 0 {
		err = unix.ESRCH
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", t.name, err)
	}
	return nil
}

// OpenPaths takes the network namespace at netns and the user namespace at userns.
// If userns is empty, it is the one that owns the network namespace.
func OpenPaths(netns, userns string) (*Target, error) {
	t := &Target{name: netns}
	var err error
	if t.netns, err = openNSAt(nil, netns, netns, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	if userns != "" {
		t.userns, err = openNSAt(nil, userns, userns, unix.CLONE_NEWUSER)
	} else {
		t.userns, err = ownerOf(t.netns)
	}
	if err == nil {
		err = t.compare()
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// compare finds out whether the user namespace is our own, in which case it
// cannot be joined and need not be (setns(2): EINVAL).
func (t *Target) compare() error {
	same, err := sameFile(t.userns, "/proc/self/ns/user")
	t.sameUser = same
	return err
}

// NetNS is the network namespace; it stays the Target's.
func (t *Target) NetNS() *os.File { return t.netns }

// UserNS is the user namespace; it stays the Target's.
func (t *Target) UserNS() *os.File { return t.userns }

// PIDFD refers to the process, and is readable from its end on; nil for a target
// made from paths. It stays the Target's.
func (t *Target) PIDFD() *os.File { return t.pidfd }

// Close lets go of the namespaces.
func (t *Target) Close() error {
	for _, f := range []*os.File{t.netns, t.userns, t.pidfd, t.proc} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}
