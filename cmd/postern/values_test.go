package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

func TestParseLoopback(t *testing.T) {
	tests := []struct {
		in    string
		on    bool
		ports []uint16
		bad   bool
	}{
		{in: ""},
		{in: "false"},
		{in: "all", on: true},
		{in: "true", on: true},
		{in: "80", on: true, ports: []uint16{80}},
		{in: "80, 8000-8002,65535", on: true, ports: []uint16{80, 8000, 8001, 8002, 65535}},
		{in: "0", bad: true},
		{in: "65536", bad: true},
		{in: "9-8", bad: true},
		{in: "-", bad: true},
		{in: "80,", bad: true},
		{in: "http", bad: true},
		{in: "1-65535", bad: true},
		{in: "+80", bad: true},
	}
	for _, tc := range tests {
		on, ports, err := parseLoopback(tc.in)
		if (err != nil) != tc.bad || on != tc.on || !slices.Equal(ports, tc.ports) {
			t.Errorf("parseLoopback(%q) = %v, %v, %v", tc.in, on, ports, err)
		}
	}
}

func TestCheckIfName(t *testing.T) {
	for _, good := range []string{"tap0", "eth0", "a", strings.Repeat("x", 15), "en-p1_s0.5"} {
		if err := checkIfName(good); err != nil {
			t.Errorf("checkIfName(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "lo", "a/b", "a:b", "a b", "a\tb", "tap%d", "ä", strings.Repeat("x", 16)} {
		if checkIfName(bad) == nil {
			t.Errorf("checkIfName(%q) = nil, want an error", bad)
		}
	}
}

func TestParseOutbound(t *testing.T) {
	v4, v6, err := parseOutbound([]string{"192.0.2.1", "2001:db8::1"})
	if err != nil || v4 != netip.MustParseAddr("192.0.2.1") || v6 != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("parseOutbound = %v, %v, %v", v4, v6, err)
	}
	if v4, _, err := parseOutbound([]string{"::ffff:192.0.2.1"}); err != nil || v4 != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("of a mapped address: %v, %v", v4, err)
	}
	for _, bad := range [][]string{{"0.0.0.0"}, {"224.0.0.1"}, {"192.0.2.1", "192.0.2.2"}, {"no-such-interface"}, {""}, {"lo"}} {
		if v4, v6, err := parseOutbound(bad); err == nil {
			t.Errorf("parseOutbound(%q) = %v, %v", bad, v4, v6)
		}
	}
}

func TestApplyConfig(t *testing.T) {
	newFlags := func() (*pflag.FlagSet, *networkFlags) {
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		f := new(networkFlags)
		f.register(fs)
		return fs, f
	}
	write := func(text string) string {
		file := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	fs, f := newFlags()
	if err := fs.Parse([]string{"--mtu", "1500"}); err != nil {
		t.Fatal(err)
	}
	err := applyConfig(fs, write("# c\n\n mtu=9000\nname = one\ndns = 192.0.2.1\ndns=192.0.2.2\nallow-host-loopback = 80\nudp-idle = 5s"))
	if err != nil {
		t.Fatal(err)
	}
	if f.mtu != 1500 || f.name != "one" || !slices.Equal(f.dns, []string{"192.0.2.1", "192.0.2.2"}) ||
		f.hostLoopback != "80" || f.udpIdle != 5*time.Second {
		t.Errorf("flags are %+v", f)
	}
	for text, want := range map[string]string{
		"mtu":             ":1: \"mtu\": want flag = value",
		"\nfoo = 1":       ":2: unknown key \"foo\"",
		"config = x":      ":1: unknown key \"config\"",
		"mtu = x":         ":1: mtu: ",
		" = ":             ":1: unknown key \"\"",
		"ready-fd = 1.5":  ":1: ready-fd: ",
		"udp-idle = long": ":1: udp-idle: ",
	} {
		fs, _ := newFlags()
		if err := applyConfig(fs, write(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("applyConfig of %q = %v, want %q", text, err, want)
		}
	}
}

// FuzzApplyConfig is fault I8: no configuration file makes postern panic.
func FuzzApplyConfig(f *testing.F) {
	f.Add("mtu = 1500\n# c\nname=x")
	f.Add("allow-host-loopback = 1-5,7")
	f.Fuzz(func(t *testing.T, text string) {
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		flags := new(networkFlags)
		flags.register(fs)
		for line := range strings.Lines(text) {
			_ = applyLine(fs, nil, strings.TrimSpace(line))
		}
		_, _ = flags.parse(&app{})
	})
}

func TestTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var b strings.Builder
	err := printTable(&b, []instance.Info{
		{Name: "one", ChildPID: 12, Endpoint: "tap", TCP: "netstack", TCPWhy: "no\ttproxy", Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.100")},
			Started: now.Add(-90 * time.Minute), Command: []string{"sh", "-c", "a\nb\x1b[2J"}},
		{Name: "two"},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	want := "NAME  PID  ENDPOINT  TCP                   ADDRESS     STARTED  COMMAND\n" +
		"one   12   tap       netstack (no?tproxy)  10.0.2.100  1h ago   sh -c a?b?[2J\n" +
		"two   -    -         -                     -           -        -\n"
	if b.String() != want {
		t.Errorf("table is\n%swant\n%s", b.String(), want)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", time.Hour: "1h", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
}
