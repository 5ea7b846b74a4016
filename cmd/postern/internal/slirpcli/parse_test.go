package slirpcli

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// base is what "slirp4netns 42 tap0" means.
func base() Options {
	return Options{
		ExitFD: -1, ReadyFD: -1, TAPFD: -1, MTU: 1500, CIDR: netip.MustParsePrefix("10.0.2.0/24"),
		NetNSType: TypePID, PID: 42, TAPName: "tap0",
	}
}

// with is base, changed.
func with(change func(o *Options)) Options {
	o := base()
	change(&o)
	return o
}

// bess is what "slirp4netns --target-type=bess /s.sock" means, changed.
func bess(change func(o *Options)) Options {
	o := base()
	o.NetNSType, o.PID, o.TAPName, o.Bess, o.Path = "", 0, "", true, "/s.sock"
	change(&o)
	return o
}

func checkParse(t *testing.T, line string, want Options) {
	t.Helper()
	got, err := Parse(strings.Fields(line))
	if err != nil {
		t.Errorf("%s: %v", line, err)
		return
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", line, diff)
	}
}

func TestParseWords(t *testing.T) {
	for line, want := range map[string]Options{
		"42 tap0":                   base(),
		"42 tap0 -c":                with(func(o *Options) { o.Configure = true }),
		"-c 42 --mtu 9000 tap0":     with(func(o *Options) { o.Configure, o.MTU = true, 9000 }),
		"-cr3 42 tap0":              with(func(o *Options) { o.Configure, o.ReadyFD = true, 3 }),
		"-cr 3 42 tap0":             with(func(o *Options) { o.Configure, o.ReadyFD = true, 3 }),
		"-c6e4 42 tap0":             with(func(o *Options) { o.Configure, o.IPv6, o.ExitFD = true, true, 4 }),
		"-m1400 42 tap0":            with(func(o *Options) { o.MTU = 1400 }),
		"-m 1400 -m 1401 42 tap0":   with(func(o *Options) { o.MTU = 1401 }),
		"--mtu=1400 42 tap0":        with(func(o *Options) { o.MTU = 1400 }),
		"--mt=1400 42 tap0":         with(func(o *Options) { o.MTU = 1400 }),
		"--mt 1400 42 tap0":         with(func(o *Options) { o.MTU = 1400 }),
		"--exit 0 42 tap0":          with(func(o *Options) { o.ExitFD = 0 }),
		"--no 42 tap0":              with(func(o *Options) { o.DisableHostLoopback = true }),
		"--disable-h 42 tap0":       with(func(o *Options) { o.DisableHostLoopback = true }),
		"--disable-d 42 tap0":       with(func(o *Options) { o.DisableDNS = true }),
		"--create-sandbox 42 tap0":  with(func(o *Options) { o.Sandbox = true }),
		"--enable-sa 42 tap0":       with(func(o *Options) { o.Sandbox = true }),
		"--enable-se 42 tap0":       with(func(o *Options) { o.Seccomp = true }),
		"--outbound-addr x 42 tap0": with(func(o *Options) { o.Outbound4 = "x" }),
		"--outbound-addr6=y 42 tap0": with(func(o *Options) {
			o.Outbound6 = "y"
		}),
		"-a /s 42 tap0":           with(func(o *Options) { o.APISocket = "/s" }),
		"--api-socket=-s 42 tap0": with(func(o *Options) { o.APISocket = "-s" }),
		"--api-socket -c 42 tap0": with(func(o *Options) { o.APISocket = "-c" }),
		"-- 42 -c":                with(func(o *Options) { o.TAPName = "-c" }),
		"42 -- tap0 --mtu":        with(func(o *Options) { o.Extra = []string{"--mtu"} }),
		"42 tap0 more -c and":     with(func(o *Options) { o.Configure, o.Extra = true, []string{"more", "and"} }),
		"42 -":                    with(func(o *Options) { o.TAPName = "-" }),
		"--cidr 10.9.0.0/16 42 tap0": with(func(o *Options) {
			o.CIDR = netip.MustParsePrefix("10.9.0.0/16")
		}),
		"--netns-type=pid --target-type netns 42 tap0":   base(),
		"--target-type=bess --target-type=netns 42 tap0": base(),
		"--target-type=bess /s.sock":                     bess(func(o *Options) {}),
		"/s.sock --target-type bess":                     bess(func(o *Options) {}),
		"--target-type=netns --target-type=bess /s.sock": bess(func(o *Options) {}),
		"--target-type=bess 42":                          bess(func(o *Options) { o.Path = "42" }),
		"--target-type=bess @x":                          bess(func(o *Options) { o.Path = "@x" }),
		"--target-type=bess -6r3 -e4 -m 9000 -a /a --cidr=10.9.0.0/16 --disable-dns --disable-host-loopback /s.sock": bess(func(o *Options) {
			o.IPv6, o.ReadyFD, o.ExitFD, o.MTU, o.APISocket, o.DisableDNS, o.DisableHostLoopback = true, 3, 4, 9000, "/a", true, true
			o.CIDR = netip.MustParsePrefix("10.9.0.0/16")
		}),
		"--target-type=bess --enable-sandbox --enable-seccomp --outbound-addr=x --macaddress=02:00:00:12:34:56 /s.sock": bess(func(o *Options) {
			o.Sandbox, o.Seccomp, o.Outbound4, o.MAC = true, true, "x", [6]byte{2, 0, 0, 0x12, 0x34, 0x56}
		}),
		"-c --macaddress=02:00:00:12:34:56 42 tap0": with(func(o *Options) {
			o.Configure, o.MAC = true, [6]byte{2, 0, 0, 0x12, 0x34, 0x56}
		}),
		"--netns-type path 42 tap0": with(func(o *Options) { o.NetNSType, o.PID, o.Path = TypePath, 0, "42" }),
		"--netns-type tapfd 42": with(func(o *Options) {
			o.NetNSType, o.PID, o.TAPFD, o.TAPName = TypeTAPFD, 0, 42, ""
		}),
		"--netns-type tapfd 0 tap0": with(func(o *Options) { o.NetNSType, o.PID, o.TAPFD = TypeTAPFD, 0, 0 }),
	} {
		checkParse(t, line, want)
	}
}

// TestParseCallers: the command lines of the programs that call slirp4netns.
func TestParseCallers(t *testing.T) {
	for line, want := range map[string]Options{
		// Podman up to 5 and Buildah (containers/common).
		"--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 " +
			"-c -r 3 -e 4 --netns-type=path /run/user/1000/netns/netns-1 tap0": with(func(o *Options) {
			o.DisableHostLoopback, o.MTU, o.Sandbox, o.Seccomp, o.IPv6, o.Configure = true, 65520, true, true, true, true
			o.ReadyFD, o.ExitFD, o.NetNSType, o.PID, o.Path = 3, 4, TypePath, 0, "/run/user/1000/netns/netns-1"
		}),
		"--mtu=65520 --enable-seccomp --cidr=10.0.3.0/24 --outbound-addr=eth0 --outbound-addr6=eth1 " +
			"-c -r 3 --api-socket /tmp/run-1000/id.net --netns-type=path /proc/7/ns/net tap0": with(func(o *Options) {
			o.MTU, o.Seccomp, o.Configure, o.ReadyFD = 65520, true, true, 3
			o.CIDR, o.Outbound4, o.Outbound6 = netip.MustParsePrefix("10.0.3.0/24"), "eth0", "eth1"
			o.APISocket, o.NetNSType, o.PID, o.Path = "/tmp/run-1000/id.net", TypePath, 0, "/proc/7/ns/net"
		}),
		// RootlessKit, the namespace by process.
		"--mtu 65520 -r 3 --disable-host-loopback --cidr 10.0.2.0/24 --api-socket /run/state/.s4nn.sock " +
			"--enable-sandbox --enable-seccomp --enable-ipv6 42 tap0": with(func(o *Options) {
			o.MTU, o.ReadyFD, o.DisableHostLoopback, o.Sandbox, o.Seccomp, o.IPv6 = 65520, 3, true, true, true, true
			o.APISocket = "/run/state/.s4nn.sock"
		}),
		// RootlessKit with --detach-netns.
		"--mtu 65520 -r 3 --userns-path=/proc/42/ns/user --netns-type=path /proc/42/root/run/state/netns tap0": with(func(o *Options) {
			o.MTU, o.ReadyFD, o.UserNSPath, o.NetNSType, o.PID = 65520, 3, "/proc/42/ns/user", TypePath, 0
			o.Path = "/proc/42/root/run/state/netns"
		}),
	} {
		checkParse(t, line, want)
	}
}

func TestParseShows(t *testing.T) {
	for line, want := range map[string]Action{
		"--help": ShowHelp, "-h": ShowHelp, "--version": ShowVersion, "-v": ShowVersion, "--vers": ShowVersion,
		"-h -m 99999": ShowHelp, "-ch --wrong": ShowHelp, "-v -h": ShowVersion, "-c -v": ShowVersion,
	} {
		if o, err := Parse(strings.Fields(line)); err != nil || o.Action != want {
			t.Errorf("%s: action %d, %v, want %d", line, o.Action, err, want)
		}
	}
}

// TestParseRefuses: what is wrong, and whether the usage belongs to the answer.
func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("a", 108)
	for _, c := range []struct {
		line, want string
		usage      bool
	}{
		{"", "operands are missing", true},
		{"42", "operands are missing", true},
		{"-c 42", "operands are missing", true},
		{"--netns-type=path /x", "operands are missing", true},
		{"--netns-type=tapfd", "operands are missing", true},
		{"--foo 42 tap0", "unrecognized option '--foo'", true},
		{"--foo=1 42 tap0", "unrecognized option '--foo=1'", true},
		{"-z 42 tap0", "invalid option -- 'z'", true},
		{"-cz 42 tap0", "invalid option -- 'z'", true},
		{"-m", "option requires an argument -- 'm'", true},
		{"42 tap0 --mtu", "option '--mtu' requires an argument", true},
		{"--configure=1 42 tap0", "option '--configure' doesn't allow an argument", true},
		{"--enable-s=x 42 tap0", "option '--enable-s=x' is ambiguous; possibilities: '--enable-sandbox' '--enable-seccomp'", true},
		{"--outbound 1 42 tap0", "option '--outbound' is ambiguous; possibilities: '--outbound-addr' '--outbound-addr6'", true},
		{"-5 tap0", "invalid option -- '5'", true},
		{"abc tap0", "want the number of a process", true},
		{"0 tap0", "want the number of a process", true},
		{"--netns-type=tapfd tap0", "want the number of an open descriptor", true},
		{"--netns-type=vm 42 tap0", "want path, pid or tapfd", true},
		{"--target-type=vm 42 tap0", "want netns or bess", true},
		{"--target-type=bess", "operands are missing", true},
		{"--target-type=bess /s tap0", "too many arguments", true},
		{"--target-type=bess -c /s", "--configure conflicts with --target-type=bess", true},
		{"-c --macaddress=02:00:00:12:34:56 /s --target-type=bess", "--configure conflicts with --target-type=bess", true},
		{"--target-type=bess --netns-type=pid /s", "--netns-type conflicts with --target-type=bess", true},
		{"--netns-type=tapfd --target-type=bess 5", "--netns-type conflicts with --target-type=bess", true},
		{"--target-type=bess --userns-path=/proc/1/ns/user /s", "--userns-path conflicts with --target-type=bess", true},
		{"--target-type=bess -r3 -e3 /s", "--ready-fd and --exit-fd are the same descriptor, 3", false},
		{"--target-type=bess /" + long, "a path of 109 bytes cannot be a socket's", false},
		{"--target-type=bess --macaddress=03:00:00:00:00:01 /s", "want the hardware address", false},
		{"-m 0 42 tap0", "want 1 to 65521 bytes", true},
		{"-m 65522 42 tap0", "want 1 to 65521 bytes", true},
		{"-m x 42 tap0", "want 1 to 65521 bytes", true},
		{"-m 99999 -h", "want 1 to 65521 bytes", true},
		{"-r -1 42 tap0", "--ready-fd", true},
		{"-e x 42 tap0", "--exit-fd", true},
		{"-e=4 42 tap0", "--exit-fd", true},
		{"-r 3 -e 3 42 tap0", "--ready-fd and --exit-fd are the same descriptor, 3", false},
		{"-r 3 --netns-type=tapfd 3", "--ready-fd and the TAP are the same", false},
		{"--cidr=10.0.2.1/24 42 tap0", "want the network's own, 10.0.2.0/24", false},
		{"--cidr=10.0.2.0/26 42 tap0", "the prefix length must be 1 to 25", false},
		{"--cidr=0.0.0.0/0 42 tap0", "the prefix length must be 1 to 25", false},
		{"--cidr=10.0.2.0 42 tap0", "want an IPv4 network like 10.0.2.0/24", false},
		{"--cidr=fd00::/64 42 tap0", "want an IPv4 network", false},
		{"--macaddress=02:00:00:00:00:01 42 tap0", "--macaddress needs --configure", true},
		{"-c --macaddress=xx 42 tap0", "want the hardware address", false},
		{"-c --macaddress=02:00:00:00:00:01:03:04 42 tap0", "want the hardware address", false},
		{"-c --macaddress=03:00:00:00:00:01 42 tap0", "want the hardware address", false},
		{"-c --macaddress=00:00:00:00:00:00 42 tap0", "no interface can have that address", false},
		{"-a /" + long + " 42 tap0", "want 1 to 107", false},
		{"--api-socket= 42 tap0", "want 1 to 107", false},
	} {
		_, err := Parse(strings.Fields(c.line))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
			continue
		}
		var usage *UsageError
		if got := errors.As(err, &usage); got != c.usage {
			t.Errorf("%s: %v is a UsageError: %t, want %t", c.line, err, got, c.usage)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: an error of several lines: %v", c.line, err)
		}
	}
	for _, args := range [][]string{{"42", ""}, {"--netns-type=path", "", "tap0"}, {"", "tap0"}, {"--target-type=bess", ""}} {
		if _, err := Parse(args); err == nil {
			t.Errorf("%q: accepted", args)
		}
	}
}

// FuzzParse: any words end in options that hold together, or in a line.
func FuzzParse(f *testing.F) {
	for _, line := range []string{"-cr3 42 tap0", "--mtu=9 -- 1 x", "--netns-type tapfd 5", "--target-type bess /s", "-a -e --e -", "--=", "---c"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		o, err := Parse(strings.Split(line, " "))
		if err != nil {
			if err.Error() == "" {
				t.Error("an empty error")
			}
			return
		}
		if o.Action != Serve {
			return
		}
		targets := 0
		for _, is := range []bool{o.PID > 0, o.Path != "", o.TAPFD >= 0} {
			if is {
				targets++
			}
		}
		if targets != 1 || o.MTU < 1 || o.CIDR != o.CIDR.Masked() ||
			o.TAPName == "" && o.NetNSType != TypeTAPFD && !o.Bess || o.Bess != (o.NetNSType == "") {
			t.Errorf("%q: %+v", line, o)
		}
	})
}
