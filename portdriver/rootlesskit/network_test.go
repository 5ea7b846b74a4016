package rootlesskit_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	kit "github.com/rootless-containers/rootlesskit/v3/pkg/messages"

	"github.com/postern-net/postern/portdriver/rootlesskit"
	"github.com/postern-net/postern/stack/stacktest"
)

// program writes a shell script to stand for postern.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postern")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// serving notes its arguments, is ready, and notes that it was asked to end.
const serving = `echo "$@" >"$0.args"
printf 1 >&3
exec 3>&-
read -r _ <&4
echo ended >"$0.end"`

func TestParentNetwork(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, test := range []struct {
		name, detached string
		cfg            rootlesskit.NetworkConfig
		args           string
		want           kit.ParentInitNetworkDriverCompleted
	}{{
		name: "defaults",
		args: "attach --state-dir /state/.postern --port-driver none --cidr 10.0.2.0/24 --cidr6 none --mtu 65520 --ifname tap0 --ready-fd 3 --exit-fd 4 77",
		want: kit.ParentInitNetworkDriverCompleted{Dev: "tap0", IP: "10.0.2.100", Netmask: 24, Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}, MTU: 65520},
	}, {
		name: "all", detached: "/proc/77/root/state/netns",
		cfg: rootlesskit.NetworkConfig{
			CIDR: netip.MustParsePrefix("192.168.7.128/25"), IPv6: true, MTU: 1500, IfName: "eth0", HostLoopback: true, Flags: []string{"--tcp=netstack"},
		},
		args: "attach --state-dir /state/.postern --port-driver none --cidr 192.168.7.128/25 --cidr6 fd00::/64 --mtu 1500 --ifname eth0 --ready-fd 3 --exit-fd 4" +
			" --allow-host-loopback --tcp=netstack --netns /proc/77/root/state/netns --userns /proc/77/ns/user",
		want: kit.ParentInitNetworkDriverCompleted{Dev: "eth0", IP: "192.168.7.228", Netmask: 25, Gateway: "192.168.7.130",
			DNS: []string{"192.168.7.131", "fd00::3"}, MTU: 1500},
	}} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Binary = program(t, serving)
			d, err := rootlesskit.NewParentNetwork(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, end, err := d.ConfigureNetwork(77, "/state", test.detached)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("the child is told (-want +got):\n%s", diff)
			}
			if args := read(t, test.cfg.Binary+".args"); args != test.args+"\n" {
				t.Errorf("arguments:\n%swant:\n%s", args, test.args)
			}
			info, err := d.Info(t.Context())
			if err != nil || info.Driver != rootlesskit.NetworkDriverName || info.ChildIP.String() != test.want.IP || len(info.DNS) != len(test.want.DNS) {
				t.Errorf("info: %+v, %v", info, err)
			}
			if err := end(); err != nil {
				t.Error(err)
			}
			if read(t, test.cfg.Binary+".end") != "ended\n" {
				t.Error("the program was not asked to end")
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A program that fails says why, and what it says is the error.
func TestParentNetworkFails(t *testing.T) {
	stacktest.NoLeaks(t)
	d, err := rootlesskit.NewParentNetwork(rootlesskit.NetworkConfig{Binary: program(t, "echo first >&2; echo 'postern: no such namespace' >&2; exit 125")})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = d.ConfigureNetwork(77, "/state", "")
	if err == nil || !strings.Contains(err.Error(), "postern: no such namespace") || strings.Contains(err.Error(), "first") {
		t.Errorf("got %v, want the program's last line", err)
	}
}

func TestParentNetworkRefuses(t *testing.T) {
	here := program(t, "exit 0")
	for _, cfg := range []rootlesskit.NetworkConfig{
		{Binary: here + ".not"},
		{Binary: here, CIDR: netip.MustParsePrefix("10.0.2.0/26")},
		{Binary: here, CIDR: netip.MustParsePrefix("10.0.2.1/24")},
		{Binary: here, CIDR: netip.MustParsePrefix("fd00::/64")},
	} {
		if d, err := rootlesskit.NewParentNetwork(cfg); err == nil {
			t.Errorf("%+v: got %v, want an error", cfg, d)
		}
	}
}

func TestChildNetwork(t *testing.T) {
	c := rootlesskit.NewChildNetwork()
	if name, err := c.ConfigureNetworkChild(&kit.ParentInitNetworkDriverCompleted{Dev: "tap0"}, ""); name != "tap0" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	if _, err := c.ConfigureNetworkChild(&kit.ParentInitNetworkDriverCompleted{}, ""); err == nil {
		t.Error("takes no interface for one")
	}
	if info, err := c.ChildDriverInfo(); err != nil || !info.ConfiguresInterface {
		t.Errorf("got %+v, %v; the parent's side configures the interface", info, err)
	}
}
