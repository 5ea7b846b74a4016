package slirpcli

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/stack/netplan"
)

// TestHelpProbes: what callers look for.
func TestHelpProbes(t *testing.T) {
	// dockerd-rootless.sh and containerd-rootless.sh: grep -qw -- --netns-type
	if !regexp.MustCompile(`(^|\W)--netns-type(\W|$)`).MatchString(Help) {
		t.Error("no word --netns-type")
	}
	for _, probe := range []string{
		"--configure", "--exit-fd", "--ready-fd", "--mtu", "--enable-ipv6", "--api-socket", "--cidr", "--disable-host-loopback",
		"--netns-type", "--userns-path", "--enable-sandbox", "--enable-seccomp", "--outbound-addr", "--outbound-addr6",
		"--disable-dns", "--macaddress", "--target-type", "--help", "--version", "tapfd",
		"--target-type=TYPE       ", "([netns|bess], default=netns)",
		"\n--netns-type=TYPE \t ", "([path|pid|tapfd], default=pid)\n",
	} {
		if !strings.Contains(Help, probe) {
			t.Errorf("the help lacks %q", probe)
		}
	}
}

// TestVersionAsDockerReadsIt: Docker's daemon takes what follows "version" in any
// line, the last such line, and what follows "commit:".
func TestVersionAsDockerReadsIt(t *testing.T) {
	var version, commit string
	text := Version("v0.1.0", "0123abc")
	for line := range strings.Lines(text) {
		if i := strings.LastIndex(line, "version"); i >= 0 {
			version = strings.TrimSpace(line[i+len("version"):])
		} else if rest, found := strings.CutPrefix(line, "commit:"); found {
			commit = strings.TrimSpace(rest)
		}
	}
	if version != "1.3.1" || commit != "0123abc" {
		t.Errorf("read as version %q, commit %q:\n%s", version, commit, text)
	}
	if !strings.Contains(text, "postern: v0.1.0") {
		t.Errorf("it does not say what it is:\n%s", text)
	}
	if !strings.Contains(Version("devel", ""), "\ncommit: unknown\n") {
		t.Error("an empty commit")
	}
}

func TestBanner(t *testing.T) {
	o := base()
	o.APISocket = "/run/s.sock"
	want := `Starting slirp
* MTU:             1500
* Network:         10.0.2.0
* Netmask:         255.255.255.0
* Gateway:         10.0.2.2
* DNS:             10.0.2.3
* DHCP begin:      10.0.2.15
* DHCP end:        10.0.2.30
* Recommended IP:  10.0.2.100
* API Socket:      /run/s.sock
WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2 (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)
`
	plan := netplan.Default().V4
	if diff := cmp.Diff(want, o.Banner(plan, 1500)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	o.APISocket, o.DisableHostLoopback = "", true
	if got := o.Banner(plan, 1500); strings.Contains(got, "WARNING") || strings.Contains(got, "API") {
		t.Errorf("a line too many:\n%s", got)
	}
}
