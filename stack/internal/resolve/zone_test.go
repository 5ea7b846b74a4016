package resolve

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// inNamespace marks the process that runs a test inside namespaces of its own.
const inNamespace = "POSTERN_TEST_IN_NAMESPACE"

// enterNamespace runs the calling test again in a new user and network
// namespace, whose loopback interface is up and has fe80::1, and reports whether
// this is that run.
func enterNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		setUpLoopback(t)
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && os.Getenv("CI") != "true" {
		t.Skipf("user namespaces are not available: %v", err)
	}
	if err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	return false
}

// setUpLoopback brings lo up and gives it fe80::1/64 (netdevice(7)).
func setUpLoopback(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		t.Fatalf("bring lo up: %v", err)
	}
	request := struct { // struct in6_ifreq
		addr      [16]byte
		prefixLen uint32
		index     int32
	}{netip.MustParseAddr("fe80::1").As16(), 64, 1}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatalf("add fe80::1 to lo: %v", errno)
	}
}

func TestUpstreamWithZone(t *testing.T) {
	if !enterNamespace(t) {
		return
	}
	query := packQuery(t, "example.com.", mdns.TypeA)
	right := packResponse(t, query, nil, "example.com. 5 IN A 198.51.100.1")
	at := net.UDPAddr{IP: net.ParseIP("fe80::1"), Zone: "lo", Port: 53}
	udp, err := net.ListenUDP("udp6", &at)
	for deadline := time.Now().Add(patience); errors.Is(err, unix.EADDRNOTAVAIL) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // until duplicate address detection is over
		udp, err = net.ListenUDP("udp6", &at)
	}
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.ListenTCP("tcp6", &net.TCPAddr{IP: at.IP, Zone: at.Zone, Port: at.Port})
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{udp: udp, tcp: tcp, respond: always(right)}
	u.wg.Go(u.serveUDP)
	u.wg.Go(u.serveTCP)
	t.Cleanup(u.close)
	for _, zone := range []string{"lo", "1"} {
		server := netip.AddrPortFrom(netip.MustParseAddr("fe80::1%"+zone), 53)
		for _, network := range []string{"udp", "tcp"} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			got, err := exchange(ctx, network, server, withID(query, 7))
			cancel()
			if err != nil || !bytes.Equal(got, withID(right, 7)) {
				t.Errorf("%s over %s: %x, %v", server, network, got, err)
			}
		}
		if got := queryUDP(t, newForwarder(t, server), query); !bytes.Equal(got, right) {
			t.Errorf("%s: %x", server, got)
		}
	}
}
