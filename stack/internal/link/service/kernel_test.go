package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/netplan"
)

// The tests of this file let a Linux kernel and common DHCP clients judge the
// service: a veth pair between two network namespaces of an own user namespace,
// a packet socket with the service at the far end, nothing configured at the
// near end.

const (
	insideEnv = "POSTERN_TEST_SERVICE_INSIDE"
	nearName  = "tap0"
	deadline  = 60 * time.Second
)

// missing ends a test whose tools are not there: on a user's machine it is
// skipped, where everything was set up it fails.
func missing(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

func lookup(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + tool); err != nil {
			missing(t, "this test needs "+tool, err)
		}
	}
	return path
}

func TestKernelAndClients(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		return
	}
	lookup(t, "ip")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestInside$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		missing(t, "this test needs user namespaces", err)
	}
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Errorf("the test inside the namespaces failed: %v", err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("a client is missing, see above")
	}
}

func TestInside(t *testing.T) {
	if os.Getenv(insideEnv) == "" {
		return // an entry point, run by TestKernelAndClients
	}
	iface := startLink(t)
	t.Run("echo from link-local", func(t *testing.T) { echoFrom(t, "fe80::2%"+nearName) })
	t.Run("SLAAC", func(t *testing.T) { stateless(t, iface) })
	t.Run("echo over IPv6", func(t *testing.T) { echoFrom(t, "fd00::2"); echoFrom(t, "fd00::3") })
	t.Run("dhclient over IPv6", func(t *testing.T) { dhclient6(t) })
	t.Run("udhcpc", func(t *testing.T) { udhcpc(t) })
	t.Run("echo", func(t *testing.T) { echoFrom(t, "10.0.2.2"); echoFrom(t, "10.0.2.3") })
	t.Run("dhclient", func(t *testing.T) { dhclient(t) })
}

// run runs a tool in the near end's namespace.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, lookup(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startLink makes the pair, starts the service on the far end and then brings the
// near end up, which makes the kernel send its first solicitations.
func startLink(t *testing.T) *net.Interface {
	tid, far := make(chan int), make(chan string)
	socket := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and its namespace, end with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
		}
		tid <- unix.Gettid()
		fd, err := openFar(<-far)
		if err != nil {
			t.Errorf("far end: %v", err)
		}
		socket <- fd
	}()
	run(t, "ip", "link", "add", nearName, "mtu", "1500", "type", "veth", "peer", "name", "far", "mtu", "1500",
		"netns", fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), <-tid))
	far <- "far"
	fd := <-socket
	if t.Failed() {
		t.FailNow()
	}
	iface, err := net.InterfaceByName(nearName)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{
		Plan: netplan.Default(), ContainerMAC: MAC(iface.HardwareAddr), MTU: 1500,
		DNSSearch: []string{"corp.example", "lan"},
	})
	device := os.NewFile(uintptr(fd), "far")
	served := make(chan struct{})
	go serve(t, s, device, served)
	t.Cleanup(func() { device.Close(); <-served })
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "set", nearName, "up")
	return iface
}

func serve(t *testing.T, s *Service, device *os.File, done chan struct{}) {
	defer close(done)
	buf := make([]byte, 2048)
	for {
		n, err := device.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // the link is down until both ends are up
		}
		replies, _ := s.Handle(time.Now(), buf[:n])
		for _, r := range replies {
			if _, err := device.Write(r); err != nil {
				t.Errorf("reply of %d bytes: %v", len(r), err)
			}
		}
	}
}

// openFar brings the interface up and opens it, in the thread's namespace.
func openFar(name string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_NOARP | unix.IFF_PROMISC)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return -1, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return -1, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: int(ifr.Uint32()), Protocol: all})
}

// eventually polls until f returns "", and fails with what it returned last.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	last := ""
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = f(); last == "" {
			return
		}
	}
	t.Fatal(last)
}

func echoFrom(t *testing.T, host string) {
	network, v6 := "ip4:icmp", false
	if strings.Contains(host, ":") {
		network, v6 = "ip6:ipv6-icmp", true
	}
	eventually(t, func() string {
		c, err := net.Dial(network, host)
		if err != nil {
			return fmt.Sprintf("echo from %s: %v", host, err)
		}
		defer c.Close()
		from, to := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("10.0.2.2")
		if v6 {
			from, to = netip.IPv6Unspecified(), netip.IPv6Unspecified()
		}
		packet := icmp.AppendEcho(nil, icmp.Echo{ID: 77, Seq: 1, Payload: []byte("payload")}, from, to)
		head := 20
		if v6 {
			head = 40 // the kernel puts in the addresses and the checksum
		}
		c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(packet[head:]); err != nil {
			return fmt.Sprintf("echo from %s: %v", host, err)
		}
		buf := make([]byte, 1500)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return fmt.Sprintf("echo from %s: %v", host, err)
			}
			msg := buf[:n]
			if h, ok := inet.ParseIPv4(msg); ok && !v6 {
				msg = h.Payload(msg) // a raw socket of IPv4 delivers the header too
			}
			if e, ok := icmp.ParseEcho(v6, msg); ok && e.Reply && e.ID == 77 && string(e.Payload) == "payload" {
				return ""
			}
		}
	})
}

// stateless waits until the kernel has an address of the prefix that it found to
// be free, and a default route.
func stateless(t *testing.T, iface *net.Interface) {
	eventually(t, func() string {
		text, err := os.ReadFile("/proc/thread-self/net/if_inet6")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// address, index, prefix length, scope, flags, name (inet6_ifaddr, if_addr.h)
			f := strings.Fields(line)
			if len(f) == 6 && strings.HasPrefix(f[0], "fd000000") && f[5] == iface.Name && f[4] == "00" {
				return ""
			}
		}
		return "no address that is neither tentative nor duplicate in\n" + string(text)
	})
	if routes := run(t, "ip", "-6", "route"); !strings.Contains(routes, "default via fe80::2 dev "+nearName) ||
		!strings.Contains(routes, "fd00::/64 dev "+nearName) {
		t.Errorf("routes\n%s", routes)
	}
	if mtu, _ := os.ReadFile("/proc/sys/net/ipv6/conf/" + nearName + "/mtu"); strings.TrimSpace(string(mtu)) != "1500" {
		t.Errorf("MTU %s", mtu)
	}
}

// script writes a client's hook that prints its environment to the file returned.
func script(t *testing.T, extra string) (hook, env string) {
	dir := t.TempDir()
	hook, env = filepath.Join(dir, "hook"), filepath.Join(dir, "env")
	text := fmt.Sprintf("#!/bin/sh\n{ echo \"event=$1\"; set; echo end=; } >>%s\n%s\n", env, extra)
	if err := os.WriteFile(hook, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return hook, env
}

// expectEnv checks that the hook saw each of the settings.
func expectEnv(t *testing.T, env string, settings ...string) {
	t.Helper()
	text, err := os.ReadFile(env)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		if !strings.Contains(string(text), "\n"+name+"='"+value+"'\n") && !strings.Contains(string(text), "\n"+s+"\n") {
			t.Errorf("%s is missing in\n%s", s, text)
		}
	}
}

func udhcpc(t *testing.T) {
	hook, env := script(t, `[ "$1" = bound ] && `+lookup(t, "ip")+` addr add $ip/$mask dev $interface && `+lookup(t, "ip")+` route add default via $router || true`)
	// -a looks with ARP whether somebody has the address already.
	out := run(t, "udhcpc", "-i", nearName, "-f", "-n", "-q", "-a", "-t", "5", "-T", "1", "-O", "mtu", "-O", "search", "-s", hook)
	if strings.Contains(out, "in use") {
		t.Errorf("the address seemed to be in use:\n%s", out)
	}
	expectEnv(t, env, "ip=10.0.2.100", "mask=24", "subnet=255.255.255.0", "router=10.0.2.2", "dns=10.0.2.3", "lease=86400",
		"serverid=10.0.2.2", "mtu=1500", "search=corp.example lan", "domain=corp.example", "broadcast=10.0.2.255")
}

func dhclient(t *testing.T) {
	lease(t, "-4", "reason=BOUND", "new_ip_address=10.0.2.100", "new_subnet_mask=255.255.255.0", "new_routers=10.0.2.2",
		"new_domain_name_servers=10.0.2.3", "new_dhcp_lease_time=86400")
}

func dhclient6(t *testing.T) {
	lease(t, "-6", "reason=BOUND6", "new_ip6_address=fd00::100", "new_dhcp6_name_servers=fd00::3",
		"new_dhcp6_domain_search=corp.example. lan.", "new_max_life=86400")
}

// lease runs dhclient in the foreground, which would otherwise outlive the test,
// until its hook saw the first setting.
func lease(t *testing.T, family string, settings ...string) {
	hook, env := script(t, "exit 0")
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, lookup(t, "dhclient"), family, "-d", "-v", "-sf", hook,
		"-lf", dir+"/leases", "-pf", dir+"/pid", "-cf", "/dev/null", nearName)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // the error is the signal
		if t.Failed() {
			t.Logf("dhclient:\n%s", &log)
		}
	})
	name, value, _ := strings.Cut(settings[0], "=")
	eventually(t, func() string {
		text, _ := os.ReadFile(env)
		if strings.Contains(string(text), "\n"+name+"='"+value+"'\n") && strings.HasSuffix(string(text), "\nend=\n") {
			return ""
		}
		return settings[0] + " is missing in\n" + string(text)
	})
	expectEnv(t, env, settings...)
}
