package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/portdriver/activation"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/userns/spawn"
)

// networkFlags are the flags that run and attach share, as given.
type networkFlags struct {
	name, stateDir      string
	cidr, cidr6         string
	mtu                 int
	ifname              string
	endpoint            string
	tcp                 string
	hostLoopback        string
	outbound            []string
	dns, dnsSearch      []string
	udpIdle, udpUnreply time.Duration
	logLevel, logFormat string
	config              string
	readyFD, exitFD     int
	ports               portFlags
}

// loopbackAll is the value of --allow-host-loopback without ports.
const loopbackAll = "all"

func (f *networkFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	f.ports.register(fs)
	fs.StringVar(&f.name, "name", "", "instance `NAME` (default: generated)")
	fs.StringVar(&f.stateDir, "state-dir", "", "use `DIR` as the instance's directory (default: $XDG_RUNTIME_DIR/postern/NAME)")
	fs.StringVar(&f.cidr, "cidr", netplan.DefaultV4.String(), "IPv4 `NETWORK`: gateway .2, name server .3, container .100")
	fs.StringVar(&f.cidr6, "cidr6", netplan.DefaultV6.String(), "IPv6 `NETWORK`: gateway ::2, name server ::3, container ::100; none turns IPv6 off")
	fs.IntVar(&f.mtu, "mtu", stack.MaxMTU, fmt.Sprintf("`BYTES` of the largest packet, %d to %d", stack.MinMTU, stack.MaxMTU))
	fs.StringVar(&f.ifname, "ifname", "tap0", "`NAME` of the container's interface")
	fs.StringVar(&f.hostLoopback, "allow-host-loopback", "",
		"let the gateway address reach the host's loopback, all ports or only `PORTS` (80,8000-8010)")
	fs.Lookup("allow-host-loopback").NoOptDefVal = loopbackAll
	fs.StringSliceVar(&f.outbound, "outbound-addr", nil, "host `ADDR` or interface whose address outgoing sockets use; one per family")
	fs.StringSliceVar(&f.dns, "dns", nil, "name server `ADDR` to ask instead of the host's (repeatable)")
	fs.StringSliceVar(&f.dnsSearch, "dns-search", nil, "search `DOMAIN` instead of the host's (repeatable)")
	fs.StringVar(&f.endpoint, "endpoint", string(supervisor.EndpointAuto), "`KIND` of endpoint: auto, tap or packet")
	fs.StringVar(&f.tcp, "tcp", "auto", "`PATH` of TCP connections: express, netstack, or auto, which is express where the kernel offers it")
	fs.DurationVar(&f.udpIdle, "udp-idle", 0, "`TIME` after which an idle UDP flow ends (default 2m0s)")
	fs.DurationVar(&f.udpUnreply, "udp-idle-unreplied", 0, "the same `TIME` before the first reply (default 30s)")
	fs.IntVar(&f.readyFD, "ready-fd", -1, "descriptor `FD` to write \"1\" to when the network works")
	fs.IntVar(&f.exitFD, "exit-fd", -1, "descriptor `FD`: end when its other side is closed")
	fs.StringVar(&f.logLevel, "log-level", "warn", "`LEVEL`: debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "text", "`FORMAT` of log lines: text or json")
	fs.StringVar(&f.config, "config", "", "`FILE` of \"flag = value\" lines; the command line wins")
}

// parse checks the flags and returns the configuration that they mean.
func (f *networkFlags) parse(a *app) (cfg supervisor.Config, err error) {
	cfg = supervisor.Config{
		Name: f.name, StateDir: f.stateDir, RuntimeDir: a.getenv("XDG_RUNTIME_DIR"), Version: version(),
		MTU: f.mtu, IfName: f.ifname, Endpoint: supervisor.Endpoint(f.endpoint), Configure: true,
		DNSSearch: f.dnsSearch, UDPIdle: f.udpIdle, UDPIdleUnreplied: f.udpUnreply,
		Stdin: a.in, Stdout: a.out, Stderr: a.err,
	}
	for _, step := range []func(*supervisor.Config) error{
		f.parseInstance, f.parsePlan, f.parseLink, f.parseReach, f.parseDNS, f.parseTimes, f.parseLog, f.parseFDs,
		f.ports.parse,
	} {
		if err := step(&cfg); err != nil {
			return supervisor.Config{}, err
		}
	}
	cfg.Inherited, err = activation.Take(a.getenv, os.Getpid())
	return cfg, err
}

func (f *networkFlags) parseInstance(*supervisor.Config) error {
	if f.name == "" {
		return nil
	}
	return instance.CheckName(f.name)
}

func (f *networkFlags) parsePlan(cfg *supervisor.Config) (err error) {
	if cfg.Plan.V4, err = parseFamily("cidr", f.cidr, netip.Addr.Is4); err != nil {
		return err
	}
	if f.cidr6 == "none" {
		return nil
	}
	cfg.Plan.V6, err = parseFamily("cidr6", f.cidr6, netip.Addr.Is6)
	return err
}

func parseFamily(flag, text string, right func(netip.Addr) bool) (netplan.Family, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || !right(p.Addr()) {
		return netplan.Family{}, fmt.Errorf("--%s %q: want a network of that family like %s", flag, text,
			map[string]netip.Prefix{"cidr": netplan.DefaultV4, "cidr6": netplan.DefaultV6}[flag])
	}
	family, err := netplan.NewFamily(p)
	if err != nil {
		return netplan.Family{}, fmt.Errorf("--%s: %w", flag, err)
	}
	return family, nil
}

func (f *networkFlags) parseLink(*supervisor.Config) error {
	if f.mtu < stack.MinMTU || f.mtu > stack.MaxMTU {
		return fmt.Errorf("--mtu %d: want %d to %d", f.mtu, stack.MinMTU, stack.MaxMTU)
	}
	if err := checkIfName(f.ifname); err != nil {
		return err
	}
	switch f.endpoint {
	case "auto", "tap", "packet":
		return nil
	}
	return fmt.Errorf("--endpoint %q: want auto, tap or packet", f.endpoint)
}

func (f *networkFlags) parseReach(cfg *supervisor.Config) (err error) {
	switch cfg.TCP = supervisor.TCPPath(f.tcp); cfg.TCP {
	case supervisor.TCPAuto, supervisor.TCPExpress, supervisor.TCPNetstack:
	default:
		return fmt.Errorf("--tcp %q: want auto, netstack or express", f.tcp)
	}
	if cfg.HostLoopback, cfg.HostLoopbackPorts, err = parseLoopback(f.hostLoopback); err != nil {
		return err
	}
	cfg.Outbound4, cfg.Outbound6, err = parseOutbound(f.outbound)
	return err
}

func (f *networkFlags) parseDNS(cfg *supervisor.Config) error {
	for _, text := range f.dns {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.IsUnspecified() || addr.IsMulticast() {
			return fmt.Errorf("--dns %q: want the address of a name server", text)
		}
		cfg.DNS = append(cfg.DNS, addr.Unmap())
	}
	return nil
}

func (f *networkFlags) parseTimes(*supervisor.Config) error {
	if f.udpIdle < 0 || f.udpUnreply < 0 {
		return fmt.Errorf("--udp-idle and --udp-idle-unreplied: want a time above zero")
	}
	return nil
}

func (f *networkFlags) parseLog(cfg *supervisor.Config) error {
	if err := cfg.LogLevel.UnmarshalText([]byte(f.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", f.logLevel)
	}
	cfg.LogLevel = max(cfg.LogLevel, slog.LevelDebug)
	cfg.LogJSON = f.logFormat == "json"
	if f.logFormat != "json" && f.logFormat != "text" {
		return fmt.Errorf("--log-format %q: want text or json", f.logFormat)
	}
	return nil
}

func (f *networkFlags) parseFDs(cfg *supervisor.Config) (err error) {
	if cfg.ReadyFD, err = inherited("ready-fd", f.readyFD); err != nil {
		return err
	}
	cfg.ExitFD, err = inherited("exit-fd", f.exitFD)
	return err
}

// inherited adopts a descriptor that the user names; -1 is none.
func inherited(flag string, fd int) (*os.File, error) {
	if fd == -1 {
		return nil, nil
	}
	if !isOpen(fd) {
		return nil, fmt.Errorf("--%s %d: not an open descriptor above 2", flag, fd)
	}
	return os.NewFile(uintptr(fd), "--"+flag), nil
}

// mapMode checks --map.
func mapMode(text string) (spawn.Mode, error) {
	switch m := spawn.Mode(text); m {
	case spawn.Auto, spawn.Subid, spawn.Single:
		return m, nil
	}
	return "", fmt.Errorf("--map %q: want auto, subid or single", text)
}
