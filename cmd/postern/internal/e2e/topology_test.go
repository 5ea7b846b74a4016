package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Addresses of the topology.
const (
	host4, host6     = "10.98.0.1", "fd98::1"
	remote4, remote6 = "10.98.0.2", "fd98::2"
	// second4 is the remote's second name server.
	second4 = "10.98.0.3"
	// The remote routes these to nowhere, with and without telling.
	unreachable4, unreachable6 = "203.0.113.1", "2001:db8:bad::1"
	blackhole4                 = "203.0.113.129"
	// The host has no route to these.
	noRoute4, noRoute6 = "198.51.100.1", "2001:db8:f00::1"
	metadata4          = "169.254.169.254"
	metadata6          = "fd00:ec2::254"
	linkLocal          = "fe80::1"
)

// netns is a network namespace with a thread in it.
type netns struct {
	work chan func()
	// path leads to it while the test process lives.
	path string
}

// newNetNS makes a network namespace that lives as long as the test process.
func newNetNS() (*netns, error) {
	ns := &netns{work: make(chan func())}
	ready := make(chan error)
	go ns.inhabit(ready)
	return ns, <-ready
}

// inhabit makes the namespace, says so, and does what is asked for there.
func (ns *netns) inhabit(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread stays in the namespace
	if unix.Gettid() == os.Getpid() {
		// Not the first thread: /proc/self/net, which tests read, is its.
		defer runtime.UnlockOSThread()
		moved := make(chan error)
		go ns.inhabit(moved) // on another one, since this one is locked
		ready <- <-moved
		return
	}
	err := unix.Unshare(unix.CLONE_NEWNET)
	ns.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	ready <- err
	for f := range ns.work {
		f()
	}
}

// do runs f in the namespace: sockets that it opens and processes that it starts
// are there, goroutines that it starts are not.
func (ns *netns) do(f func() error) error {
	done := make(chan error)
	ns.work <- func() { done <- f() }
	return <-done
}

// ip runs ip(8), once for each line, in the namespace of the calling thread.
func ip(lines ...string) error {
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return nil
}

// sysctl writes a setting of the calling thread's network namespace.
func sysctl(path, value string) error {
	return os.WriteFile("/proc/sys/"+path, []byte(value), 0)
}

// arrange makes the host and its neighbour.
func arrange() (err error) {
	if lab.remote, err = newNetNS(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	if err := arrangeFiles(); err != nil {
		return err
	}
	if err := arrangeHost(); err != nil {
		return err
	}
	if err := lab.remote.do(arrangeRemote); err != nil {
		return err
	}
	if lab.srv, err = serve(lab.remote); err != nil {
		return err
	}
	// The link takes a moment to find its carrier.
	return eventually(patience, func() error {
		return errors.Join(oneEcho(remote4, "ready?"), oneEcho(remote6, "ready?"))
	})
}

func arrangeHost() error {
	var tid string
	if err := lab.remote.do(func() error { tid = fmt.Sprint(unix.Gettid()); return nil }); err != nil {
		return err
	}
	err := ip(
		"link set lo up",
		"link add eth0 type veth peer name eth0 netns "+tid,
		"addr add "+host4+"/24 dev eth0",
		"addr add "+host6+"/64 dev eth0 nodad",
		"addr add "+linkLocal+"/64 dev eth0 nodad",
		"addr add "+metadata4+"/32 dev lo",
		"addr add "+metadata6+"/128 dev lo nodad",
		"link set eth0 up",
	)
	return errors.Join(err, defaultRoutes(),
		ip("route add throw 198.51.100.0/24", "-6 route add throw 2001:db8:f00::/48"),
		sysctl("net/ipv4/ip_local_port_range", "20000 65000"),
		sysctl("net/ipv4/ping_group_range", pingGroups()))
}

// pingGroups is every group that there is.
func pingGroups() string {
	if lab.root {
		return "0 2147483647"
	}
	return "0 0"
}

func defaultRoutes() error {
	return ip("route replace default via "+remote4, "-6 route replace default via "+remote6)
}

func arrangeRemote() error {
	return errors.Join(
		sysctl("net/ipv4/ip_forward", "1"),
		sysctl("net/ipv6/conf/all/forwarding", "1"),
		// Every error message of a test counts.
		sysctl("net/ipv4/icmp_ratemask", "0"), sysctl("net/ipv6/icmp/ratelimit", "0"), sysctl("net/ipv6/icmp/ratemask", "255"),
		ip(
			"link set lo up",
			"addr add "+remote4+"/24 dev eth0",
			"addr add "+second4+"/24 dev eth0",
			"addr add "+remote6+"/64 dev eth0 nodad",
			"link set eth0 up",
			"route add unreachable 203.0.113.0/25",
			"route add blackhole 203.0.113.128/25",
			"-6 route add unreachable 2001:db8:bad::/48",
		))
}

// arrangeFiles gives the host an /etc in which everything may be replaced, its
// resolv.conf first, and a /dev/net/tun that its users may open.
func arrangeFiles() error {
	old := lab.dir + "/etc"
	if err := os.Mkdir(old, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/etc", old, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /etc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/etc", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount over /etc: %w", err)
	}
	names, err := os.ReadDir(old)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name.Name() == "resolv.conf" {
			continue
		}
		if err := stand(filepath.Join(old, name.Name()), "/etc/"+name.Name()); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver "+remote4+"\nsearch e2e.test\n"), 0o644); err != nil {
		return err
	}
	if lab.root {
		return coverTUN(0o666)
	}
	return nil
}

// stand puts a copy of a small file, or else a symbolic link, in its place:
// newuidmap(1) follows no links to the files that it trusts.
func stand(old, path string) error {
	info, err := os.Lstat(old)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() && info.Size() < 1<<20 {
		if b, err := os.ReadFile(old); err == nil {
			return errors.Join(os.WriteFile(path, b, info.Mode().Perm()), os.Chmod(path, info.Mode().Perm()))
		}
	}
	return os.Symlink(old, path)
}

// coverTUN covers /dev/net in this mount namespace with one that holds a TUN
// device of the given mode, as udev makes it on a desktop, or nothing for mode 0.
func coverTUN(mode uint32) error {
	if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount over /dev/net: %w", err)
	}
	if mode == 0 {
		return nil
	}
	err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|mode, int(unix.Mkdev(10, 200)))
	return errors.Join(err, os.Chmod("/dev/net/tun", os.FileMode(mode)))
}
