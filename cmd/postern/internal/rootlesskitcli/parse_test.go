package rootlesskitcli

import (
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/userns/spawn"
)

// configured parses a command line and returns its configuration.
func configured(args ...string) (supervisor.RunConfig, []Note, error) {
	i, err := Parse(args)
	if err != nil {
		return supervisor.RunConfig{}, nil, err
	}
	return i.Config(true)
}

// diff compares configurations.
func diff(want, got supervisor.RunConfig) string {
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty())
}

// base is the configuration that every command line begins with.
func base(change func(*supervisor.RunConfig)) supervisor.RunConfig {
	c := supervisor.RunConfig{
		Config: supervisor.Config{
			Configure: true, Endpoint: supervisor.EndpointAuto, TCP: supervisor.TCPAuto,
			RootlessKit: supervisor.RootlessKit{Hosts: true}, LogLevel: slog.LevelWarn, PortDriver: supervisor.PortDriverNone,
		},
		Map: spawn.Auto, Net: supervisor.NetHost, Propagation: "rprivate", Subids: supervisor.SubidAuto, Command: []string{"true"},
	}
	change(&c)
	return c
}

// engine is what a network that an engine serves adds.
func engine(c *supervisor.RunConfig) {
	c.Net, c.MTU, c.IfName, c.HostLoopback = supervisor.NetEngine, 65520, "tap0", true
	c.Plan.V4 = netplan.Default().V4
}

// published is what a port driver adds that takes ports to child.
func published(c *supervisor.RunConfig, child string) {
	c.PortDriver, c.RootlessKit.Everywhere = supervisor.PortDriverAuto, true
	c.RootlessKit.Child, _ = netip.ParseAddr(child)
}

// TestCallers: the command lines of the scripts that call rootlesskit, word by word.
func TestCallers(t *testing.T) {
	scripts := func(c *supervisor.RunConfig) {
		engine(c)
		published(c, "127.0.0.1")
		c.HostLoopback, c.Propagation = false, "rslave"
	}
	tests := map[string]struct {
		args []string
		want func(*supervisor.RunConfig)
	}{
		"dockerd-rootless.sh of Docker 20.10": {
			[]string{"--net=slirp4netns", "--mtu=65520", "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto",
				"--disable-host-loopback", "--port-driver=builtin", "--copy-up=/etc", "--copy-up=/run", "--propagation=rslave",
				"/usr/share/docker.io/contrib/dockerd-rootless.sh", "--experimental", "-H", "fd://"},
			func(c *supervisor.RunConfig) {
				scripts(c)
				c.CopyUp = []string{"/etc", "/run"}
				c.Command = []string{"/usr/share/docker.io/contrib/dockerd-rootless.sh", "--experimental", "-H", "fd://"}
			}},
		"dockerd-rootless.sh of 2026": {
			[]string{"--state-dir=/run/user/1000/dockerd-rootless", "--net=slirp4netns", "--mtu=65520", "--slirp4netns-sandbox=auto",
				"--slirp4netns-seccomp=auto", "--disable-host-loopback", "--port-driver=builtin", "--copy-up=/etc", "--copy-up=/run",
				"--propagation=rslave", "--detach-netns", "dockerd-rootless.sh"},
			func(c *supervisor.RunConfig) {
				scripts(c)
				c.StateDir, c.DetachNetNS = "/run/user/1000/dockerd-rootless", true
				c.CopyUp, c.Command = []string{"/etc", "/run"}, []string{"dockerd-rootless.sh"}
			}},
		"containerd-rootless.sh": {
			[]string{"--state-dir", "/run/user/1000/containerd-rootless", "--net=slirp4netns", "--mtu=65520", "--slirp4netns-sandbox=auto",
				"--slirp4netns-seccomp=auto", "--disable-host-loopback", "--port-driver=builtin", "--copy-up=/etc", "--copy-up=/run",
				"--copy-up=/var/lib", "--propagation=rslave", "--detach-netns", "--ipv6", "/usr/local/bin/containerd-rootless.sh"},
			func(c *supervisor.RunConfig) {
				scripts(c)
				c.StateDir, c.DetachNetNS = "/run/user/1000/containerd-rootless", true
				c.CopyUp, c.Command = []string{"/etc", "/run", "/var/lib"}, []string{"/usr/local/bin/containerd-rootless.sh"}
				c.Plan.V6 = netplan.Default().V6
			}},
		"Usernetes": {
			[]string{"--cgroupns", "--pidns", "--ipcns", "--utsns", "--evacuate-cgroup2=rootlesskit_evac", "--copy-up=/etc,/run",
				"--net=slirp4netns", "-port-driver", "builtin", "-p", "0.0.0.0:6443:6443/tcp", "--", "boot", "--net=x"},
			func(c *supervisor.RunConfig) {
				engine(c)
				c.PIDNS, c.CgroupNS, c.IPCNS, c.UTSNS, c.Reaper = true, true, true, true, true
				published(c, "127.0.0.1")
				c.EvacuateCgroup2, c.CopyUp = "rootlesskit_evac", []string{"/etc", "/run"}
				c.Publish = []portdriver.Spec{spec("tcp", "0.0.0.0", 6443, "127.0.0.1", 6443)}
				c.Command = []string{"boot", "--net=x"}
			}},
		"BuildKit": {[]string{"buildkitd", "--debug"}, func(c *supervisor.RunConfig) { c.Command = []string{"buildkitd", "--debug"} }},
	}
	for name, tc := range tests {
		got, notes, err := configured(tc.args...)
		if d := diff(base(tc.want), got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
		for _, n := range notes {
			if n.Level > slog.LevelDebug {
				t.Errorf("%s: says %q", name, n.Text)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	tests := map[string]func(*supervisor.RunConfig){
		"":                    func(*supervisor.RunConfig) {},
		"--net host":          func(*supervisor.RunConfig) {},
		"-net none":           func(c *supervisor.RunConfig) { c.Net = supervisor.NetNone },
		"--detach-netns=true": func(c *supervisor.RunConfig) { c.Net, c.DetachNetNS = supervisor.NetNone, true },
		"--detach-netns=false --debug=1 -propagation slave": func(c *supervisor.RunConfig) {
			c.LogLevel, c.Propagation = slog.LevelDebug, "slave"
		},
		"--net=postern":                                        engine,
		"--net=pasta --mtu 65521":                              engine,
		"--net=vpnkit --vpnkit-binary /nonexistent":            engine,
		"--net=gvisor-tap-vsock --source-ip-transparent=false": engine,
		"--net=postern --mtu=1500 --cidr=192.0.2.0/25 --ifname=eth0 --ipv6": func(c *supervisor.RunConfig) {
			engine(c)
			c.MTU, c.IfName, c.Plan.V6 = 1500, "eth0", netplan.Default().V6
			c.Plan.V4, _ = netplan.NewFamily(netip.MustParsePrefix("192.0.2.0/25"))
		},
		"--net=slirp4netns --slirp4netns-sandbox=true --slirp4netns-seccomp true": engine,
		"--net=pasta --port-driver=implicit": func(c *supervisor.RunConfig) {
			engine(c)
			published(c, "")
			c.PublishAuto, c.RootlessKit.AutoEverywhere, c.RootlessKit.DriverName = true, true, "implicit"
		},
		"--net=none --port-driver=builtin -p 127.0.0.1:8080:80/tcp": func(c *supervisor.RunConfig) {
			c.Net = supervisor.NetNone
			published(c, "127.0.0.1")
			c.PortDriver = supervisor.PortDriverSplice
			c.Publish = []portdriver.Spec{spec("tcp", "127.0.0.1", 8080, "127.0.0.1", 80)}
		},
		"--net=slirp4netns --port-driver slirp4netns -p 127.0.0.1:8080:80/udp": func(c *supervisor.RunConfig) {
			engine(c)
			published(c, "")
			c.Publish = []portdriver.Spec{spec("udp", "127.0.0.1", 8080, "", 80)}
		},
		"--pidns --reaper=false":             func(c *supervisor.RunConfig) { c.PIDNS = true },
		"--pidns --reaper=true":              func(c *supervisor.RunConfig) { c.PIDNS, c.Reaper = true, true },
		"--subid-source=static":              func(c *supervisor.RunConfig) { c.Subids = supervisor.SubidStatic },
		"--copy-up /etc/ -copy-up=/a/../var": func(c *supervisor.RunConfig) { c.CopyUp = []string{"/etc", "/var"} },
	}
	for line, want := range tests {
		got, _, err := configured(append(strings.Fields(line), "true")...)
		if d := diff(base(want), got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", line, err, d)
		}
	}
}

func TestRefused(t *testing.T) {
	tests := map[string]string{
		"--nonsense":                                    "flag provided but not defined: -nonsense",
		"--mtu":                                         "flag needs an argument: -mtu",
		"--mtu=x true":                                  `invalid value "x" for flag -mtu`,
		"--pidns=maybe true":                            `invalid boolean value "maybe" for -pidns`,
		"--net=host":                                    "no command specified",
		"--print-semver=all":                            "want major, minor or patch",
		"--net=lxc-user-nic true":                       "--net=lxc-user-nic: the bridge",
		"--net=bridge true":                             "unknown network mode: bridge",
		"--mtu=-1 true":                                 "--mtu -1: ",
		"--net=postern --mtu=9 true":                    "--mtu 9: want 68 to 65520",
		"--net=postern --mtu=65522 true":                "--mtu 65522: ",
		"--cidr=10.0.0.0/24 true":                       "--cidr: not supported for --net=host",
		"--net=none --ifname=x true":                    "--ifname: not supported for --net=none",
		"--net=postern --cidr=10.0.2.100/24 true":       `--cidr "10.0.2.100/24": want the address`,
		"--net=postern --cidr=fd00::/64 true":           `--cidr "fd00::/64": want the address of an IPv4`,
		"--net=postern --cidr=10.0.0.0/31 true":         "--cidr: ",
		"--port-driver=builtin true":                    "--port-driver=builtin does not go with --net=host; use --port-driver=none, or --net=postern or none or",
		"--detach-netns --port-driver=builtin true":     "does not go with --net=host",
		"--net=none --port-driver=implicit true":        "use --port-driver=none or builtin, or --net=postern or pasta",
		"--net=slirp4netns --port-driver=implicit true": "use --port-driver=none or builtin or slirp4netns, or --net=postern or pasta",
		"--net=pasta --port-driver=builtin -p 127.0.0.1:1:1/tcp true":      "use --port-driver=none or implicit or pesto, or",
		"--net=none -p 127.0.0.1:1:1/tcp true":                             "use --port-driver=builtin",
		"--net=postern --port-driver=pasta true":                           `did you mean "pesto"?`,
		"--net=postern --port-driver=fast true":                            "unknown port driver: fast",
		"--net=postern -p 80:80/tcp true":                                  "--port-driver=none",
		"--net=slirp4netns --slirp4netns-sandbox=true --detach-netns true": "conflicts with --detach-netns",
		"--net=slirp4netns --slirp4netns-sandbox=maybe true":               "--slirp4netns-sandbox \"maybe\"",
		"--net=slirp4netns --slirp4netns-seccomp=maybe true":               "--slirp4netns-seccomp \"maybe\"",
		"--reaper=true true":                                               "--reaper=true requires --pidns",
		"--reaper=yes true":                                                "--reaper \"yes\"",
		"--evacuate-cgroup2=x --pidns true":                                "requires --pidns and --cgroupns",
		"--evacuate-cgroup2=../x --pidns --cgroupns true":                  "want the name of one cgroup",
		"--subid-source=ldap true":                                         "--subid-source \"ldap\"",
		"--copy-up-mode=overlayfs true":                                    "--copy-up-mode \"overlayfs\"",
		"--copy-up=etc true":                                               "--copy-up \"etc\"",
		"--copy-up=/ true":                                                 "--copy-up \"/\"",
		"--propagation=rshared --copy-up=/etc true":                        "--propagation=rshared: the tmpfs of --copy-up",
		"--propagation=none true":                                          "--propagation \"none\"",
	}
	for line, want := range tests {
		_, _, err := configured(strings.Fields(line)...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want one line with %q", line, err, want)
		}
	}
	if _, err := Parse([]string{"--debug"}); !errors.Is(err, errNoCommand) {
		t.Errorf("Parse without a command: %v", err)
	}
}

// spec is a rule.
func spec(proto, host string, port uint16, child string, childPort uint16) portdriver.Spec {
	s := portdriver.Spec{Proto: portdriver.Proto(proto), Count: 1}
	s.Host.Addr, _ = netip.ParseAddr(host)
	s.Container.Addr, _ = netip.ParseAddr(child)
	s.Host.Port, s.Container.Port = port, childPort
	return s
}

func TestParsePort(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	tests := map[string][]portdriver.Spec{
		"127.0.0.1:8080:80/tcp":           {spec("tcp", "127.0.0.1", 8080, "127.0.0.1", 80)},
		"0.0.0.0:8080:10.0.2.100:80/tcp4": {spec("tcp4", "0.0.0.0", 8080, "10.0.2.100", 80)},
		"[::1]:8080:[fd00::100]:80/udp6":  {spec("udp6", "::1", 8080, "fd00::100", 80)},
		"[127.0.0.1]:8080:80/udp":         {spec("udp", "127.0.0.1", 8080, "127.0.0.1", 80)},
		"[::ffff:127.0.0.1]:8080:80/tcp":  {spec("tcp", "127.0.0.1", 8080, "127.0.0.1", 80)},
		":8080:80/tcp":                    {spec("tcp", "0.0.0.0", 8080, "127.0.0.1", 80), spec("tcp", "::", 8080, "127.0.0.1", 80)},
		":8080:80/tcp4":                   {spec("tcp4", "0.0.0.0", 8080, "127.0.0.1", 80)},
		":8080:80/udp6":                   {spec("udp6", "::", 8080, "127.0.0.1", 80)},
		":8080::80/tcp4":                  {spec("tcp4", "0.0.0.0", 8080, "127.0.0.1", 80)},
	}
	for text, want := range tests {
		got, err := parsePort(text, loopback, true)
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", text, err, d)
		}
	}
	if got, err := parsePort(":8080:80/tcp", loopback, false); err != nil || len(got) != 1 || !got[0].Host.Addr.Is4() {
		t.Errorf("without IPv6: %v, %v", got, err)
	}
	for text, want := range map[string]string{
		"":                           "the protocol is missing",
		"127.0.0.1:8080:80":          "the protocol is missing",
		"8080:80/tcp":                "2 parts",
		"1:2:3:4:5/tcp":              "5 parts",
		"localhost:8080:80/tcp":      "PARENTIP",
		"127.0.0.1:0:80/tcp":         "PARENTPORT",
		"127.0.0.1:8080:65536/tcp":   "CHILDPORT",
		"127.0.0.1:+80:80/tcp":       "PARENTPORT",
		"127.0.0.1:8080:box:80/tcp":  "CHILDIP",
		"[::1:8080:80/tcp":           "bracket",
		"[::1]8080:80/tcp":           "bracket",
		"::1:8080:80/tcp":            "parts",
		"127.0.0.1:8080:80/sctp":     "SCTP",
		"127.0.0.1:8080:80/TCP":      "protocol",
		"[::1]:8080:80/tcp4":         "tcp4",
		"unix:/run/x.sock:80:80/tcp": "PARENT",
	} {
		if got, err := parsePort(text, loopback, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
}

// FuzzParsePort: no text makes it panic, and what is accepted is valid.
func FuzzParsePort(f *testing.F) {
	f.Add("127.0.0.1:8080:80/tcp")
	f.Add("[::1]:8080:[fd00::100]:80/udp6")
	f.Fuzz(func(t *testing.T, text string) {
		specs, err := parsePort(text, netip.Addr{}, true)
		for _, s := range specs {
			if err == nil && s.Validate() != nil {
				t.Errorf("%q: %v is not valid", text, s)
			}
		}
	})
}

func TestTexts(t *testing.T) {
	if text := VersionText("v1.2.3"); text != "rootlesskit version 3.3.0 (postern v1.2.3)" {
		t.Errorf("VersionText = %q", text)
	}
	if v := APIVersion("v0.0.0-2026+dirty"); v != "3.3.0+postern.v0.0.0-2026-dirty" {
		t.Errorf("APIVersion = %q", v)
	}
	for name, want := range map[string]int{"major": 3, "minor": 3, "patch": 0} {
		if n, err := Component(name); err != nil || n != want {
			t.Errorf("Component(%s) = %d, %v", name, n, err)
		}
	}
	// As dockerd-rootless.sh asks: grep -qw.
	for _, literal := range []string{"--detach-netns", "--slirp4netns-sandbox", "--slirp4netns-seccomp", "--copy-up", "--state-dir", "slirp4netns"} {
		if !regexp.MustCompile(`(^|\W)` + regexp.QuoteMeta(literal) + `(\W|$)`).MatchString(Help) {
			t.Errorf("the help text lacks %s", literal)
		}
	}
}

// flagNames are the names of all flags.
func flagNames() (names []string) {
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	(&Invocation{foreign: make(map[string]*string)}).register(fs)
	fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	return names
}

// TestHelpIsComplete: every flag is in the help text, and every flag of the help text
// is there.
func TestHelpIsComplete(t *testing.T) {
	shown := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^    --([a-z0-9-]+)`).FindAllStringSubmatch(Help, -1) {
		shown[m[1]] = true
	}
	for name := range shown {
		if _, err := Parse([]string{"--" + name}); err != nil && strings.Contains(err.Error(), "not defined") {
			t.Errorf("--%s is in the help text and no flag", name)
		}
	}
	for _, name := range flagNames() {
		if !shown[name] && len(name) > 1 {
			t.Errorf("--%s is not in the help text", name)
		}
	}
}

// TestAllFlagsOfTheOriginal: what the installed rootlesskit takes is taken here.
func TestAllFlagsOfTheOriginal(t *testing.T) {
	tool, err := exec.LookPath("rootlesskit")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("rootlesskit is missing, and CI=true")
		}
		t.Skip("needs rootlesskit")
	}
	out, err := exec.Command(tool, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s+--([a-z0-9-]+)`).FindAllStringSubmatch(string(out), -1) {
		if _, err := Parse([]string{"--" + m[1]}); err != nil && strings.Contains(err.Error(), "not defined") {
			t.Errorf("rootlesskit has --%s", m[1])
		}
	}
}
