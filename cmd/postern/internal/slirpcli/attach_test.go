package slirpcli

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/stack/netplan"
)

var errLookup = errors.New("no such interface")

// lookup knows an interface with addresses of both families.
func lookup(text string) ([]netip.Addr, error) {
	if text == "eth0" {
		return []netip.Addr{
			netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.7"),
			netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8"),
		}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, errLookup
	}
	return []netip.Addr{addr}, nil
}

func attach(t *testing.T, line string) (supervisor.AttachConfig, []string) {
	t.Helper()
	o, err := Parse(strings.Fields(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	cfg, notes, err := o.Attach(lookup)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return cfg, notes
}

func TestAttach(t *testing.T) {
	v4, v6 := netplan.Default().V4, netplan.Default().V6
	plain := func(change func(c *supervisor.AttachConfig)) supervisor.AttachConfig {
		var c supervisor.AttachConfig
		c.PID, c.IfName, c.MTU, c.Plan.V4 = 42, "tap0", 1500, v4
		c.Endpoint, c.TCP, c.PortDriver = supervisor.EndpointTAP, supervisor.TCPAuto, supervisor.PortDriverAuto
		c.DHCPFirst, c.DHCPLast = netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.30")
		c.HostLoopback = true
		c.Command = []string{"slirp4netns", "42", "tap0"}
		change(&c)
		return c
	}
	for line, want := range map[string]supervisor.AttachConfig{
		"42 tap0": plain(func(c *supervisor.AttachConfig) {}),
		"-c --disable-host-loopback --disable-dns -6 -a /s --mtu=65520 42 tap0": plain(func(c *supervisor.AttachConfig) {
			c.Configure, c.Endpoint, c.HostLoopback, c.NoDNS, c.MTU = true, supervisor.EndpointAuto, false, true, 65520
			c.Plan.V6, c.Slirp4netnsSocket = v6, "/s"
		}),
		"--netns-type=path --userns-path /u /n tap0": plain(func(c *supervisor.AttachConfig) {
			c.PID, c.NetNS, c.UserNS, c.Command[1] = 0, "/n", "/u", "/n"
		}),
		"--userns-path /u 42 tap0": plain(func(c *supervisor.AttachConfig) {
			c.PID, c.NetNS, c.UserNS = 0, "/proc/42/ns/net", "/u"
		}),
		"--netns-type=tapfd 5": plain(func(c *supervisor.AttachConfig) {
			c.PID, c.IfName, c.Command = 0, "", []string{"slirp4netns", "tapfd 5"}
		}),
		"--cidr=172.16.0.0/12 --outbound-addr eth0 --outbound-addr6 eth0 42 tap0": plain(func(c *supervisor.AttachConfig) {
			c.Plan.V4, _ = netplan.NewFamily(netip.MustParsePrefix("172.16.0.0/12"))
			c.DHCPFirst, c.DHCPLast = netip.MustParseAddr("172.16.0.15"), netip.MustParseAddr("172.16.0.30")
			c.Outbound4, c.Outbound6 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
		}),
		"--target-type=bess -6 --mtu=9000 -a /s --disable-dns --macaddress=02:00:00:00:00:01 /b": plain(func(c *supervisor.AttachConfig) {
			c.PID, c.IfName, c.MTU, c.Plan.V6, c.Slirp4netnsSocket, c.NoDNS = 0, "", 9000, v6, "/s", true
			c.MAC, c.Command = [6]byte{2, 0, 0, 0, 0, 1}, []string{"slirp4netns", "--target-type=bess", "/b"}
		}),
		"-c --macaddress=02:00:00:00:00:01 42 tap0": plain(func(c *supervisor.AttachConfig) {
			c.Configure, c.Endpoint, c.MAC = true, supervisor.EndpointAuto, [6]byte{2, 0, 0, 0, 0, 1}
		}),
	} {
		got, notes := attach(t, line)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty(),
			cmpopts.IgnoreFields(supervisor.Config{}, "AutoExcept")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
		if len(notes) > 0 {
			t.Errorf("%s: %q", line, notes)
		}
	}
}

// TestAttachNotes: what is not given to the letter is said.
func TestAttachNotes(t *testing.T) {
	for line, mtu := range map[string]int{"-m 65521 42 tap0": 65520, "-m 1 42 tap0": 68} {
		if cfg, notes := attach(t, line); cfg.MTU != mtu || len(notes) != 1 {
			t.Errorf("%s: MTU %d, want %d, and %q", line, cfg.MTU, mtu, notes)
		}
	}
	cfg, notes := attach(t, "-c --macaddress=02:00:00:00:00:01 --netns-type=tapfd 5")
	if cfg.Configure || cfg.MAC != [6]byte{} || len(notes) != 1 {
		t.Errorf("-c with a descriptor: %+v, %q", cfg, notes)
	}
}

func TestAttachRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"--outbound-addr=2001:db8::7 42 tap0": "--outbound-addr 2001:db8::7: no address of that family",
		"--outbound-addr6=192.0.2.7 42 tap0":  "--outbound-addr6 192.0.2.7: no address of that family",
		"--outbound-addr=wlan9 42 tap0":       errLookup.Error(),
		"--cidr=127.0.0.0/8 42 tap0":          "--cidr: ",
	} {
		o, err := Parse(strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if _, _, err := o.Attach(lookup); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
