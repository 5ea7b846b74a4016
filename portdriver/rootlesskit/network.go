package rootlesskit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
	kit "github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network"
)

// NetworkDriverName is what RootlessKit's API calls our network driver.
const NetworkDriverName = "postern"

// NetworkConfig is what the network driver of RootlessKit's parent needs. The zero
// value serves.
type NetworkConfig struct {
	// Binary is the program postern, by path or by a name that PATH leads to; "" is
	// "postern".
	Binary string
	// CIDR is the IPv4 network, 10.0.2.0/24 if it is zero. Its hosts 2, 3 and 100 are
	// the gateway, the name server and the child.
	CIDR netip.Prefix
	// IPv6 also gives the child fd00::100 in fd00::/64.
	IPv6 bool
	// MTU in bytes; 0 is 65520.
	MTU int
	// IfName is the child's interface, "tap0" if it is empty.
	IfName string
	// HostLoopback lets the gateway's address reach the host's loopback.
	HostLoopback bool
	// Flags are further flags of postern attach.
	Flags []string
	// Log takes the engine's lines; nil is nowhere.
	Log io.Writer
}

// Defaults of RootlessKit's other network drivers.
const (
	defaultMTU    = 65520
	defaultIfName = "tap0"
	// network6 and what lies in it is the same as in RootlessKit's pasta driver.
	network6    = "fd00::/64"
	nameServer6 = "fd00::3"
)

var defaultCIDR = netip.MustParsePrefix("10.0.2.0/24")

// Offsets of addresses in CIDR.
const (
	gatewayHost    = 2
	nameServerHost = 3
	childHost      = 100
)

// maxCIDRBits is the smallest network that has a host 100.
const maxCIDRBits = 25

// NewParentNetwork returns the network driver for parent.Opt. It fails if the program
// is not there or the configuration cannot be.
func NewParentNetwork(c NetworkConfig) (network.ParentDriver, error) {
	if c.Binary == "" {
		c.Binary = "postern"
	}
	path, err := exec.LookPath(c.Binary)
	if err != nil {
		return nil, fmt.Errorf("network driver %s: %w", NetworkDriverName, err)
	}
	c.Binary = path
	if !c.CIDR.IsValid() {
		c.CIDR = defaultCIDR
	}
	if !c.CIDR.Addr().Is4() || c.CIDR != c.CIDR.Masked() || c.CIDR.Bits() > maxCIDRBits {
		return nil, fmt.Errorf("network driver %s: network %s: want an IPv4 network of at most %d bits", NetworkDriverName, c.CIDR, maxCIDRBits)
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	if c.IfName == "" {
		c.IfName = defaultIfName
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	return &parentNetwork{cfg: c}, nil
}

// parentNetwork starts an instance that serves the child.
type parentNetwork struct {
	cfg NetworkConfig

	mu   sync.Mutex // guards info
	info *api.NetworkDriverInfo
}

// host returns the n-th address of the network.
func (d *parentNetwork) host(n byte) netip.Addr {
	a := d.cfg.CIDR.Addr().As4()
	a[3] += n // at most 25 bits are the network's, so that nothing is carried
	return netip.AddrFrom4(a)
}

// MTU implements network.ParentDriver.
func (d *parentNetwork) MTU() int { return d.cfg.MTU }

// Info implements network.ParentDriver.
func (d *parentNetwork) Info(context.Context) (*api.NetworkDriverInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.info == nil {
		return &api.NetworkDriverInfo{Driver: NetworkDriverName, IPv6: d.cfg.IPv6}, nil
	}
	info := *d.info
	return &info, nil
}

// ConfigureNetwork implements network.ParentDriver. The interface is there, with its
// addresses and routes, when it returns.
func (d *parentNetwork) ConfigureNetwork(childPID int, stateDir, detachedNetNSPath string) (*kit.ParentInitNetworkDriverCompleted, func() error, error) {
	i, err := d.start(d.arguments(childPID, stateDir, detachedNetNSPath))
	if err != nil {
		return nil, func() error { return nil }, fmt.Errorf("network driver %s: %w", NetworkDriverName, err)
	}
	m := &kit.ParentInitNetworkDriverCompleted{
		Dev: d.cfg.IfName, IP: d.host(childHost).String(), Netmask: d.cfg.CIDR.Bits(),
		Gateway: d.host(gatewayHost).String(), DNS: []string{d.host(nameServerHost).String()}, MTU: d.cfg.MTU,
	}
	if d.cfg.IPv6 {
		m.DNS = append(m.DNS, nameServer6)
	}
	info := &api.NetworkDriverInfo{Driver: NetworkDriverName, ChildIP: net.ParseIP(m.IP), IPv6: d.cfg.IPv6}
	for _, server := range m.DNS {
		info.DNS = append(info.DNS, net.ParseIP(server))
	}
	d.mu.Lock()
	d.info = info
	d.mu.Unlock()
	return m, i.end, nil
}

// Numbers of the descriptors that postern gets.
const (
	readyFD = 3
	exitFD  = 4
)

// instanceDir is the instance's directory, in RootlessKit's.
const instanceDir = ".postern"

// arguments is the command line. RootlessKit's port drivers publish ports, ours among
// them; the instance is left with none.
func (d *parentNetwork) arguments(childPID int, stateDir, detachedNetNSPath string) []string {
	args := []string{
		"attach", "--state-dir", filepath.Join(stateDir, instanceDir), "--port-driver", "none",
		"--cidr", d.cfg.CIDR.String(), "--cidr6", d.cidr6(), "--mtu", strconv.Itoa(d.cfg.MTU), "--ifname", d.cfg.IfName,
		"--ready-fd", strconv.Itoa(readyFD), "--exit-fd", strconv.Itoa(exitFD),
	}
	if d.cfg.HostLoopback {
		args = append(args, "--allow-host-loopback")
	}
	args = append(args, d.cfg.Flags...)
	if detachedNetNSPath == "" {
		return append(args, strconv.Itoa(childPID))
	}
	return append(args, "--netns", detachedNetNSPath, "--userns", fmt.Sprintf("/proc/%d/ns/user", childPID))
}

func (d *parentNetwork) cidr6() string {
	if d.cfg.IPv6 {
		return network6
	}
	return "none"
}

// instance is a postern attach that runs.
type instance struct {
	cmd *exec.Cmd
	// alive is our end of ExitFD: the instance ends when it is closed, also because
	// we are gone.
	alive *os.File
}

// Times of an instance. Both pass on a machine under load only.
const (
	readyWithin = 30 * time.Second
	endWithin   = 10 * time.Second
)

// start starts postern and waits until it serves the child.
func (d *parentNetwork) start(args []string) (*instance, error) {
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	exitR, alive, err := os.Pipe()
	if err != nil {
		readyW.Close()
		return nil, err
	}
	said := &tail{next: d.cfg.Log}
	cmd := exec.Command(d.cfg.Binary, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = said, said, []*os.File{readyW, exitR}
	cmd.WaitDelay = endWithin // whoever keeps its stderr does not keep us
	err = cmd.Start()
	readyW.Close()
	exitR.Close()
	if err != nil {
		alive.Close()
		return nil, err
	}
	i := &instance{cmd: cmd, alive: alive}
	if err := awaitReady(ready); err != nil {
		_ = i.end() // then it has said everything
		return nil, fmt.Errorf("%s: %w: %s", cmd, err, said.line())
	}
	return i, nil
}

// awaitReady waits for the byte that says that the network works.
func awaitReady(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(readyWithin)); err != nil {
		return err
	}
	switch _, err := io.ReadFull(ready, make([]byte, 1)); {
	case errors.Is(err, io.EOF):
		return errors.New("it ended before the network worked")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the network does not work after %s", readyWithin)
	default:
		return err
	}
}

// end ends the instance and waits. That it failed before is in its log; RootlessKit
// is on its way out.
func (i *instance) end() error {
	i.alive.Close()
	kill := time.AfterFunc(endWithin, func() { _ = i.cmd.Process.Kill() })
	defer kill.Stop()
	_ = i.cmd.Wait()
	return nil
}

// maxLine is how much of what a program said last is kept for an error, in bytes.
const maxLine = 1 << 10

// tail passes on what is written and keeps the end of it.
type tail struct {
	next io.Writer

	mu   sync.Mutex // guards last
	last []byte
}

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	t.last = append(t.last, b...)
	t.last = t.last[max(0, len(t.last)-maxLine):]
	t.mu.Unlock()
	return t.next.Write(b)
}

// line returns the last line.
func (t *tail) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.last), []byte("\n"))
	return string(lines[len(lines)-1])
}
