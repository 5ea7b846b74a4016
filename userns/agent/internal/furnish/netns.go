package furnish

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NetNS creates a network namespace that nobody lives in, owned by the calling
// process's user namespace, and returns it, with its loopback interface up if asked
// for. All threads of the process stay where
// they are, and the one that made it ends. The main goroutine must be locked to
// the main thread, the only one that Go could not end.
func NetNS(loopback bool) (*os.File, error) {
	type made struct {
		ns  *os.File
		err error
	}
	result := make(chan made)
	go func() {
		runtime.LockOSThread() // for good, so the thread ends with the goroutine
		ns, err := unshareNet(loopback)
		result <- made{ns, err}
	}()
	m := <-result
	return m.ns, m.err
}

// unshareNet moves the calling thread to a new network namespace and returns it.
func unshareNet(loopback bool) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("create a network namespace for --detach-netns: %w%s", err, unshareFix(err))
	}
	// The sysctls of the network are those of the thread's namespace, so this is
	// the place to set them: any other thread would set the host's.
	openPing()
	if loopback {
		if err := loopbackUp(); err != nil {
			return nil, err
		}
	}
	const path = "/proc/thread-self/ns/net"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// loopbackUp brings up the loopback interface of the calling thread's network
// namespace. The kernel gives it 127.0.0.1/8 and ::1/128 by itself.
func loopbackUp() error {
	fail := func(err error) error { return fmt.Errorf("bring the loopback interface up: %w", err) }
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fail(err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fail(err)
	}
	return nil
}

// unshareFix is what helps against the refusal that is about a setting
// (namespaces(7)); empty for others.
func unshareFix(err error) string {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
		return " (raise the sysctl user.max_net_namespaces)"
	}
	return ""
}

// bindNetNS binds a network namespace to a file of the instance's directory, which
// programs in this mount namespace can enter it by.
func bindNetNS(ns *os.File, path string) error {
	source := fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the network namespace to %s: %w", path, err)
	}
	return nil
}
