package rootlesskitcli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// Invocation is a command line of rootlesskit as given.
type Invocation struct {
	// Help, Version and Semver ask for a text instead of a command: the help text,
	// the version, and one component of it (major, minor or patch).
	Help, Version bool
	Semver        string
	// Debug asks for every line of the log.
	Debug bool
	// Command is what comes after the flags.
	Command []string

	stateDir string
	network  networkFlags
	ports    portFlags
	mounts   mountFlags
	process  processFlags
	foreign  map[string]*string
	set      map[string]bool // the flags that were given
}

// networkFlags, portFlags, mountFlags and processFlags are the flags of RootlessKit's
// help text by its categories.
type networkFlags struct {
	driver, cidr, ifname string
	mtu                  int
	noHostLoopback, ipv6 bool
	detach               bool
	sandbox, seccomp     string // of slirp4netns
}

type portFlags struct {
	driver      string
	publish     list
	transparent bool
}

type mountFlags struct {
	copyUp            list
	mode, propagation string
}

type processFlags struct {
	pid, cgroup, uts, ipc bool
	reaper, evacuate      string
	subids                string
}

// foreignFlags are about programs that do not run here, with RootlessKit's defaults.
var foreignFlags = map[string]string{
	"pasta-binary":                  "pasta",
	"pesto-binary":                  "pesto",
	"slirp4netns-binary":            "slirp4netns",
	"vpnkit-binary":                 "vpnkit",
	"lxc-user-nic-binary":           "",
	"lxc-user-nic-bridge":           "lxcbr0",
	"source-ip-transparent-backend": "auto",
}

// Parse reads the arguments after the program's name. The error is one line, in the
// flag package's words, which are RootlessKit's.
func Parse(args []string) (*Invocation, error) {
	i := &Invocation{foreign: make(map[string]*string), set: make(map[string]bool)}
	fs := flag.NewFlagSet("rootlesskit", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are the caller's to print
	fs.Usage = func() {}
	i.register(fs)
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("%w (see rootlesskit --help)", err)
	}
	fs.Visit(func(f *flag.Flag) { i.set[f.Name] = true })
	i.Command = fs.Args()
	switch {
	case i.Help, i.Version:
		return i, nil
	case i.set["print-semver"] && i.Semver != "":
		_, err := Component(i.Semver)
		return i, err
	case len(i.Command) == 0:
		return nil, errNoCommand
	}
	return i, nil
}

var errNoCommand = errors.New("no command specified (see rootlesskit --help)")

func (i *Invocation) register(fs *flag.FlagSet) {
	for _, name := range []string{"help", "h"} {
		fs.BoolVar(&i.Help, name, false, "")
	}
	for _, name := range []string{"version", "v"} {
		fs.BoolVar(&i.Version, name, false, "")
	}
	fs.StringVar(&i.Semver, "print-semver", "", "")
	fs.BoolVar(&i.Debug, "debug", false, "")
	fs.StringVar(&i.stateDir, "state-dir", "", "")
	i.network.register(fs)
	i.ports.register(fs)
	fs.Var(&i.mounts.copyUp, "copy-up", "")
	fs.StringVar(&i.mounts.mode, "copy-up-mode", "tmpfs+symlink", "")
	fs.StringVar(&i.mounts.propagation, "propagation", "rprivate", "")
	i.process.register(fs)
	for name, value := range foreignFlags {
		i.foreign[name] = fs.String(name, value, "")
	}
}

func (f *networkFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.driver, "net", "host", "")
	fs.IntVar(&f.mtu, "mtu", 0, "")
	fs.StringVar(&f.cidr, "cidr", "", "")
	fs.StringVar(&f.ifname, "ifname", "", "")
	fs.BoolVar(&f.noHostLoopback, "disable-host-loopback", false, "")
	fs.BoolVar(&f.ipv6, "ipv6", false, "")
	fs.BoolVar(&f.detach, "detach-netns", false, "")
	fs.StringVar(&f.sandbox, "slirp4netns-sandbox", "false", "")
	fs.StringVar(&f.seccomp, "slirp4netns-seccomp", "false", "")
}

func (f *portFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.driver, "port-driver", "none", "")
	fs.Var(&f.publish, "publish", "")
	fs.Var(&f.publish, "p", "")
	fs.BoolVar(&f.transparent, "source-ip-transparent", true, "")
}

func (f *processFlags) register(fs *flag.FlagSet) {
	fs.BoolVar(&f.pid, "pidns", false, "")
	fs.BoolVar(&f.cgroup, "cgroupns", false, "")
	fs.BoolVar(&f.uts, "utsns", false, "")
	fs.BoolVar(&f.ipc, "ipcns", false, "")
	fs.StringVar(&f.reaper, "reaper", "auto", "")
	fs.StringVar(&f.evacuate, "evacuate-cgroup2", "", "")
	fs.StringVar(&f.subids, "subid-source", "auto", "")
}

// list is a flag that may be given several times, each with several values.
type list []string

// String implements flag.Value.
func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *list) Set(value string) error {
	for item := range strings.SplitSeq(value, ",") {
		*l = append(*l, strings.TrimSpace(item))
	}
	return nil
}
