package join

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
	"github.com/postern-net/postern/userns/rtnl"
)

// ErrNoPublishing is wrapped by PreparePublishing when the network namespace does
// not take a setting. Published ports then have to go through the netstack.
var ErrNoPublishing = errors.New("clients of published ports cannot have sockets in the container's network")

// sysctl is a setting of a network namespace, below /proc/sys/net.
type sysctl struct {
	path, value string
	optional    bool // the file may be missing
}

// publishing is what connections from sockets of SendSockets need
// (Documentation/networking/ip-sysctl).
var publishing = []sysctl{
	// A server's socket inherits the mark of the SYN that it answers.
	{"ipv4/tcp_fwmark_accept", "1", false},
	// So does what the kernel itself answers: RST and ICMP errors.
	{"ipv4/fwmark_reflect", "1", false},
	{"ipv6/fwmark_reflect", "1", true},
	// A client's port may be any; the sockets are bound by the engine, which has
	// no capability in there. It holds for IPv6 too. (Docker sets it in its containers.)
	{"ipv4/ip_unprivileged_port_start", "0", false},
	// All peers in there are on this machine. A congestion control that paces (BBR,
	// where it is the system's default) sets a timer for every segment, for nothing.
	// Reno is in every kernel; kernels before 4.15 have the setting once for all.
	{"ipv4/tcp_congestion_control", "reno", true},
}

// PreparePublishing sets the network namespace up for the sockets of SendSockets:
// some sysctls, and rules and routes (rtnl.InstallPublishing). It can be done again
// at any time. The namespace is the container's own and nobody else's, so nothing
// is remembered and nothing put back: it ends with the namespace.
//
// The errors name what could not be set and wrap its errno. EROFS says that /proc/sys
// is read-only, as in most containers; that and every other refusal of the kernel is
// ErrNoPublishing.
func (t *Target) PreparePublishing() error {
	v := t.newVisit(1)
	for _, s := range publishing {
		v.set(s)
	}
	v.route()
	v.script.Send(v.sent)
	if err := t.pay(v); err != nil {
		if refused(err) {
			return fmt.Errorf("%w: %w", ErrNoPublishing, err)
		}
		return err
	}
	defer v.sockets.Close()
	if err := rtnl.InstallPublishing(v.sockets.Route); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNoPublishing, t.name, err)
	}
	t.adoptPorts()
	return nil
}

const (
	// portRange are the ports that connect(2) hands out, and defaultPorts what they are
	// unless somebody has changed them (ip(7), ip_local_port_range).
	portRange    = "ipv4/ip_local_port_range"
	defaultPorts = "32768\t60999"
)

// adoptPorts lets the target hand out the same ports as our own network, for the
// clients have theirs from there or from a host like it: a socket with such a port can
// be used again, others serve one client each. It only saves time, so it may fail.
func (t *Target) adoptPorts() {
	host, err := os.ReadFile(sysctlDir + portRange)
	if ours := strings.TrimSpace(string(host)); err != nil || ours == defaultPorts {
		return
	}
	_, settings, err := t.Make(nil, portRange)
	if err != nil || settings[0] == nil {
		return
	}
	f := settings[0]
	defer f.Close()
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	if strings.TrimSpace(string(b[:n])) == defaultPorts {
		_, _ = f.WriteAt(host, 0)
	}
}

// refused reports whether a visit got in and then met a refusal.
func refused(err error) bool {
	step, ok := errors.AsType[*rawfork.StepError](err)
	return ok && step.What != stepUserNS && step.What != stepNetNS
}

// set writes one sysctl. Which network namespace a file below /proc/sys/net means
// is decided by who opens it; root in the namespace may write it.
func (v *visit) set(c sysctl) {
	s, what := v.script, "set /proc/sys/net/"+c.path+" to "+c.value
	skip, fd := s.NewLabel(), s.NewReg()
	open := rawfork.Step{
		What: what, Nr: unix.SYS_OPENAT, Store: fd,
		Args: [6]rawfork.Arg{
			rawfork.Int(unix.AT_FDCWD), s.Path("/proc/sys/net/" + c.path), rawfork.Int(unix.O_WRONLY | unix.O_CLOEXEC),
		},
	}
	if c.optional {
		open.Ignore, open.Failed = [3]syscall.Errno{unix.ENOENT}, skip
	}
	s.Add(open)
	s.Call(what, unix.SYS_WRITE, fd.Arg(), s.Bytes([]byte(c.value)), rawfork.Int(len(c.value)))
	s.Place(skip)
}

// ErrNoProcess is wrapped when a target made from paths is asked for what only a
// process has.
var ErrNoProcess = errors.New("a path names no process: give a process id")

// Root opens the root directory of the target's process as a descriptor that can
// only be used to look up names below it (O_PATH, open(2)). It is the directory that
// the process has at this moment. ESRCH when the process has ended, ErrNoProcess
// when there never was one.
//
// The container's processes control every name and symbolic link below it. A path
// has to be opened with openat2(2) and RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS: then
// "..", absolute links and links of /proc end at this root, not at ours, and a
// rename meanwhile does not change that. What is found may still be anything; open
// it with O_PATH first and look what it is. A unix socket is then connected to
// through /proc/self/fd/N of that descriptor, since connect(2) takes only names.
func (t *Target) Root() (*os.File, error) {
	if t.proc == nil {
		return nil, fmt.Errorf("open the root directory of %s: %w", t.name, ErrNoProcess)
	}
	fd, err := unix.Openat(int(t.proc.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root directory of %s: %w", t.name, err)
	}
	f := os.NewFile(uintptr(fd), t.proc.Name()+"/root")
	// As in OpenPID: if the process lives now, the number was its own all the while.
	if err := t.Alive(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
