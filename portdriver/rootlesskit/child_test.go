package rootlesskit_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/rootlesskit"
	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// childVariable tells a process of this binary that it is RootlessKit's child.
const childVariable = "POSTERN_ROOTLESSKIT_CHILD"

// childOrder is what the child is to do.
type childOrder struct {
	Opaque map[string]string
	// Detached leaves the child in the host's network, as --detach-netns does.
	Detached bool
	// Servers are TCP servers of the container, which say what their client is.
	Servers []netip.AddrPort
}

// child is RootlessKit's child with its container.
type child struct {
	cmd  *exec.Cmd
	keep io.Closer
}

// startChild makes the container. It has come up when this returns.
func startChild(t *testing.T, o childOrder) *child {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNET)
	if o.Detached {
		flags = unix.CLONE_NEWUSER
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, keep: in}
	t.Cleanup(func() { c.stop() })
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatalf("the child did not come up: %v", err)
	}
	return c
}

// stop has the child driver quit, and returns how the process ended.
func (c *child) stop() error {
	c.keep.Close()
	return c.cmd.Wait()
}

// runChild is the child's process.
func runChild() int {
	var o childOrder
	if err := json.Unmarshal([]byte(os.Getenv(childVariable)), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	netns, err := furnish(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Stdout.Write([]byte("!"))
	quit, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- rootlesskit.NewChildDriver(rootlesskit.Config{}).RunChildDriver(o.Opaque, quit, netns)
	}()
	io.Copy(io.Discard, os.Stdin)
	quit <- struct{}{} // as RootlessKit does it: somebody has to be there
	if err := <-ended; err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// furnish sets the container's network up and returns the path of the detached one,
// if that is what it is.
func furnish(o childOrder) (netns string, err error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread keeps the namespace
		if o.Detached {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				done <- err
				return
			}
			netns = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		}
		err := nstest.LinkUp("lo")
		for _, addr := range o.Servers {
			if err == nil {
				err = tell(addr)
			}
		}
		done <- err
		select {}
	}()
	return netns, <-done
}

// tell starts a server that tells its clients who they are.
func tell(addr netip.AddrPort) error {
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, c.RemoteAddr())
			c.Close()
		}
	}()
	return nil
}

// running is a parent driver at work.
type running struct {
	port.ParentDriver
	quit  chan struct{}
	ended chan error
}

// run starts a parent driver, and its child with the servers.
func run(t *testing.T, detached bool, cctx *port.ChildContext, servers ...string) *running {
	t.Helper()
	r := &running{
		ParentDriver: rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: t.TempDir()}),
		quit:         make(chan struct{}), ended: make(chan error, 1),
	}
	o := childOrder{Opaque: r.OpaqueForChild(), Detached: detached}
	for _, s := range servers {
		o.Servers = append(o.Servers, netip.MustParseAddrPort(s))
	}
	c := startChild(t, o)
	ready := make(chan struct{})
	go func() { r.ended <- r.RunParentDriver(ready, r.quit, cctx) }()
	select {
	case <-ready:
	case err := <-r.ended:
		t.Fatalf("the parent driver ended: %v", err)
	case <-time.After(patience):
		t.Fatal("the parent driver does not become ready")
	}
	t.Cleanup(func() {
		r.stop(t)
		if err := c.stop(); err != nil {
			t.Errorf("the child: %v", err)
		}
	})
	return r
}

// patience bounds what ought to happen soon.
const patience = 20 * time.Second

// stop has the driver quit as RootlessKit does; once is enough.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if r.quit == nil {
		return
	}
	r.quit <- struct{}{}
	r.quit = nil
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("the parent driver: %v", err)
		}
	case <-time.After(patience):
		t.Error("the parent driver does not quit")
	}
}
