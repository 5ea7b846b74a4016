package netnskeep

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// Name is the keeper's argv[0]; argv[1] is the name of its namespace.
const Name = "postern-netns"

// The keeper's descriptors.
const (
	netFD   = 100 // the network namespace
	userFD  = 101 // the user namespace that owns it
	readyFD = 3   // gets one byte when both are there
)

// another is a third argument: make a network namespace first.
const another = "another"

// Main is the keeper, on the main thread: /proc/PID/ns is that thread's. It returns
// only when it cannot be one; why goes to the descriptor that it would say "ready" on.
func Main(args []string) (exitCode int) {
	if err := prepare(len(args) > 2 && args[2] == another); err != nil {
		_, _ = unix.Write(readyFD, []byte(err.Error()))
		return 1
	}
	if _, err := unix.Write(readyFD, []byte(ready)); err != nil {
		return 1 // who asked is gone
	}
	_ = unix.Close(readyFD)
	shrink()
	for {
		_ = unix.Pause()
	}
}

// ready is what the keeper says when it has both namespaces.
const ready = "\x01"

// prepare brings up the loopback interface and opens the namespaces.
func prepare(unshare bool) error {
	if unshare {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create a network namespace: %w", err)
		}
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	route := os.NewFile(uintptr(fd), "route")
	err = rtnl.Up(route, "lo")
	_ = route.Close()
	if err != nil {
		return err
	}
	if err := place("/proc/thread-self/ns/net", netFD); err != nil {
		return err
	}
	return place("/proc/thread-self/ns/user", userFD)
}

// place opens a path under a descriptor number.
func place(path string, number int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := unix.Dup3(fd, number, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("open %s as descriptor %d: %w (see ulimit -n)", path, number, err)
	}
	return unix.Close(fd)
}
