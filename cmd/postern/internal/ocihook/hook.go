package ocihook

import (
	"errors"
	"fmt"
	"net"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Hook is one call.
type Hook struct {
	// Root is the directory of the instances' directories. It is not used at
	// createContainer, where the user has another number.
	Root string
	// Files is the bundle's directory for us, "" if it has none.
	Files string
	// Serve makes the arguments of the server for a container whose instance shall
	// have that name. The first two are the command's words.
	Serve func(s specs.State, name string) ([]string, error)
	// Env is the server's environment.
	Env []string
}

// Run does what an event asks for.
func (h Hook) Run(event string, s specs.State) error {
	var err error
	switch event {
	case CreateRuntime:
		err = h.create(s)
	case CreateContainer:
		err = h.inside(s)
	case Poststop:
		err = ContainerOf(s, h.Root).stop()
	default:
		return fmt.Errorf("hook %.64q: want %s, %s or %s", event, CreateRuntime, CreateContainer, Poststop)
	}
	if err != nil {
		return fmt.Errorf("%s hook of container %s: %w", event, s.ID, err)
	}
	return nil
}

// create gives the container its network. The pidfd is the first thing taken: if the
// process still lives when the server has its own, the number was its own all along.
func (h Hook) create(s specs.State) error {
	pidfd, err := unix.PidfdOpen(s.Pid, 0)
	if err != nil {
		return fmt.Errorf("open the container's process %d: %w", s.Pid, err)
	}
	defer unix.Close(pidfd)
	hidden, err := examine(s.Pid)
	if err != nil {
		return err
	}
	c := ContainerOf(s, h.Root)
	name, served, err := c.settle(s.Pid)
	if err != nil || served {
		return err
	}
	args, err := h.Serve(s, name)
	if err != nil {
		return err
	}
	if hidden {
		args = withWait(args)
	}
	server, err := start(args, h.Env, c.LogPath(name))
	if err != nil {
		return err
	}
	if err = server.await(); err == nil {
		err = alive(pidfd, s.Pid)
	}
	if err != nil {
		server.kill()
		_ = unix.Unlink(c.LogPath(name)) // what it held is in the error
	}
	return err
}

// examine refuses a process in our own network namespace: what it would get is an
// interface of the host. Hidden says that its namespaces are not for us to see, as
// long as it has not executed the container's program.
func examine(pid int) (hidden bool, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return true, sameUser(pid)
	}
	if err != nil {
		return false, fmt.Errorf("examine the container's process: %w", err)
	}
	defer f.Close()
	return false, otherNetwork(f)
}

// sameUser refuses a process of another user, whose namespaces will always be hidden.
func sameUser(pid int) error {
	uid, err := uidOf(pid)
	if err == nil && uid != os.Geteuid() {
		err = fmt.Errorf("process %d is uid %d's, we are uid %d (runtime and hook must run as the same user)", pid, uid, os.Geteuid())
	}
	return err
}

// alive is an error when the process of a pidfd has ended.
func alive(pidfd, pid int) error {
	if ended(pidfd) {
		return fmt.Errorf("the container's process %d ended while its network was made", pid)
	}
	return nil
}

// inside runs in the container's namespaces, before it has its root. If the server
// waits for the namespaces it gets them; else the network must be there.
func (h Hook) inside(s specs.State) error {
	waited, err := ContainerOf(s, "").bring(h.Files)
	if waited || err != nil {
		return err
	}
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list the container's interfaces: %w", err)
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return nil
		}
	}
	return errors.New("the container has no network, and no server of ours waits for it: config.json must name the hook at createRuntime too (postern oci prepare does)")
}
