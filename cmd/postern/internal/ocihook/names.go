package ocihook

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

// Container is one container's place among the instances.
type Container struct {
	ID, Bundle string
	// Root is the directory of the instances' directories.
	Root string
}

// ContainerOf is the container that a state is about.
func ContainerOf(s specs.State, root string) Container {
	return Container{ID: s.ID, Bundle: filepath.Clean(s.Bundle), Root: root}
}

// label is the first word of Command: it says that an instance is a container's.
const label = "oci"

// Command is what the instance's command line says: whose it is.
func (c Container) Command() []string { return []string{label, c.ID, c.Bundle} }

// owns reports whether an instance is this container's.
func (c Container) owns(i instance.Info) bool {
	return len(i.Command) == 3 && i.Command[0] == label && i.Command[1] == c.ID && i.Command[2] == c.Bundle
}

// names are the instance names that the container may have: its id, if that is a
// name and nobody else's, or one that only this bundle's container of this id has.
func (c Container) names() []string {
	sum := sha256.Sum256([]byte(c.ID + "\x00" + c.Bundle))
	tail := "-" + hex.EncodeToString(sum[:4])
	base := strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		case r == '+':
			return '.'
		}
		return r
	}, c.ID)
	base = strings.TrimLeft(base, "_.-")
	const longest = 63 // instance.CheckName
	long := base[:min(len(base), longest-len(tail))] + tail
	if base == "" {
		long = "oci" + tail
	}
	if base != c.ID || instance.CheckName(base) != nil {
		return []string{long}
	}
	return []string{base, long}
}

// LogPath is where the server of an instance says what it has to say.
func (c Container) LogPath(name string) string { return filepath.Join(c.Root, "."+name+".log") }

// settle finds the name for a container that is starting. Served says that an
// instance serves its process already, which is how a hook that is called twice
// ends. What an earlier run of the container left is ended first.
func (c Container) settle(pid int) (name string, served bool, err error) {
	for _, name := range c.names() {
		i, err := c.look(name)
		switch {
		case errors.Is(err, instance.ErrNone):
			return name, false, nil
		case err != nil:
			return "", false, err
		case !c.owns(i):
			continue
		case i.ChildPID == pid && i.CheckChild() == nil:
			return name, true, nil
		}
		if err := c.end(name, i.PID); err != nil {
			return "", false, err
		}
		return name, false, nil
	}
	return "", false, fmt.Errorf("choose an instance name for container %s: %s are taken by others (see postern ps)",
		c.ID, strings.Join(c.names(), " and "))
}

// look finds the instance of a name, and waits for one that is just coming or going
// to say what it is.
func (c Container) look(name string) (instance.Info, error) {
	for deadline := time.Now().Add(settleWithin); ; {
		i, err := instance.Find(c.Root, name)
		if err != nil || i.PID != 0 || time.Now().After(deadline) {
			return i, err
		}
		<-time.After(pollEvery)
	}
}

// pollEvery is the pause between two looks at something that ends within
// milliseconds.
const pollEvery = 5 * time.Millisecond

// stop ends the container's instances and removes what is left of them.
func (c Container) stop() error {
	var all error
	for _, name := range c.names() {
		i, err := c.look(name)
		if err == nil && !c.owns(i) {
			continue
		}
		if err == nil {
			err = c.end(name, i.PID)
		}
		if err != nil && !errors.Is(err, instance.ErrNone) {
			all = errors.Join(all, err)
			continue
		}
		_ = unix.Unlink(c.LogPath(name)) // there is none as a rule
	}
	return all
}

// end asks an instance to end and waits for it; one that does not is killed. The
// pidfd is taken before the instance is seen to be there still, so that the number
// cannot be another process's.
func (c Container) end(name string, pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(pidfd)
		if i, err := instance.Find(c.Root, name); err == nil && i.PID == pid && c.owns(i) {
			_ = unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0) // it may have ended
		}
	}
	killed := false
	for deadline := time.Now().Add(settleWithin); ; {
		i, err := instance.Find(c.Root, name)
		if errors.Is(err, instance.ErrNone) && (pidfd < 0 || ended(pidfd)) {
			return nil
		}
		if err == nil && i.PID != 0 && i.PID != pid {
			return nil // another one's already
		}
		if time.Now().After(deadline) {
			if killed || pidfd < 0 {
				return fmt.Errorf("end instance %s (process %d) of container %s: it does not end; kill it", name, pid, c.ID)
			}
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			killed, deadline = true, time.Now().Add(settleWithin)
		}
		<-time.After(pollEvery)
	}
}
