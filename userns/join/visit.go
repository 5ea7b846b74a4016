package join

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// The steps that errors are told apart by.
const (
	stepUserNS = "join the user namespace"
	stepNetNS  = "join the network namespace"
	stepTUN    = "open /dev/net/tun"
)

// visit is what a child does that comes back at once, and where the descriptors go
// that it sends.
type visit struct {
	script  *rawfork.Script
	sent    *rawfork.Descriptors
	into    []**os.File
	sockets *Sockets
}

// newVisit starts a visit that brings up to count descriptors: the child has
// entered the target.
func (t *Target) newVisit(count int) *visit {
	v := &visit{script: &rawfork.Script{}, sent: rawfork.NewDescriptors(count), sockets: &Sockets{}}
	t.enter(v.script)
	return v
}

// visit prepares the script for req.
func (t *Target) visit(req Request) (*visit, error) {
	count := 2
	if req.TAP != "" {
		if err := checkName(req.TAP); err != nil {
			return nil, err
		}
		count++
	}
	if req.Packet {
		count += 3
	}
	v := t.newVisit(count)
	if req.TAP != "" {
		v.tap(req.TAP)
	}
	v.route()
	v.socket("open a sock_diag socket", &v.sockets.Diag, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if req.Packet {
		v.packet()
	}
	v.script.Send(v.sent)
	return v, nil
}

// enter joins the user and the network namespace.
func (t *Target) enter(s *rawfork.Script) {
	t.enterUser(s)
	t.enterNet(s)
}

// enterUser joins the user namespace.
func (t *Target) enterUser(s *rawfork.Script) {
	s.DieWithParent(unix.SIGKILL)
	s.CheckParent()
	s.Undumpable()
	if !t.sameUser {
		s.Call(stepUserNS, unix.SYS_SETNS, rawfork.Int(int(t.userns.Fd())), rawfork.Int(unix.CLONE_NEWUSER))
	}
}

func (t *Target) enterNet(s *rawfork.Script) {
	s.Call(stepNetNS, unix.SYS_SETNS, rawfork.Int(int(t.netns.Fd())), rawfork.Int(unix.CLONE_NEWNET))
}

// add is a step whose result is a descriptor to send.
func (v *visit) add(into **os.File, st rawfork.Step) {
	st.Poke = v.sent.Next()
	v.into = append(v.into, into)
	v.script.Add(st)
}

func (v *visit) socket(what string, into **os.File, domain, kind, protocol int) {
	v.add(into, rawfork.Step{
		What: what, Nr: unix.SYS_SOCKET,
		Args: [6]rawfork.Arg{rawfork.Int(domain), rawfork.Int(kind | unix.SOCK_CLOEXEC), rawfork.Int(protocol)},
	})
}

func (v *visit) route() {
	v.socket("open a netlink socket", &v.sockets.Route, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
}

// tap opens the device and creates the interface (Documentation/networking/tuntap).
func (v *visit) tap(name string) {
	s := v.script
	fd := s.NewReg()
	v.add(&v.sockets.TAP, rawfork.Step{
		What: stepTUN, Nr: unix.SYS_OPENAT, Store: fd,
		Args: [6]rawfork.Arg{
			rawfork.Int(unix.AT_FDCWD), s.Path("/dev/net/tun"),
			rawfork.Int(unix.O_RDWR | unix.O_CLOEXEC),
		},
	})
	var req ifreqFlags
	copy(req.name[:], name)
	req.flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	s.Call("create the interface "+name, unix.SYS_IOCTL, fd.Arg(), rawfork.Int(unix.TUNSETIFF), rawfork.Pin(s, &req))
	size := int32(vnetHeaderSize)
	s.Call("set the vnet header's size of "+name, unix.SYS_IOCTL, fd.Arg(), rawfork.Int(unix.TUNSETVNETHDRSZ), rawfork.Pin(s, &size))
}

// ifreqFlags is struct ifreq with ifr_flags (netdevice(7)); its size is that of
// the whole union.
type ifreqFlags struct {
	name  [unix.IFNAMSIZ]byte
	flags uint16
	_     [24 - unsafe.Sizeof(uint16(0))]byte
}

// packet makes the second network namespace and its sockets. Protocol 0 keeps the
// socket from receiving before it is bound to the interface.
func (v *visit) packet() {
	v.script.Call("create a network namespace for the packet socket", unix.SYS_UNSHARE, rawfork.Int(unix.CLONE_NEWNET))
	v.socket("open a packet socket", &v.sockets.Packet, unix.AF_PACKET, unix.SOCK_RAW, 0)
	v.socket("open a netlink socket beside the packet socket", &v.sockets.FarRoute, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	v.add(&v.sockets.FarNetNS, rawfork.Step{
		What: "open /proc/self/ns/net", Nr: unix.SYS_OPENAT,
		Args: [6]rawfork.Arg{rawfork.Int(unix.AT_FDCWD), v.script.Path("/proc/self/ns/net"), rawfork.Int(unix.O_RDONLY | unix.O_CLOEXEC)},
	})
}

// checkName refuses what the kernel does not take as an interface's name
// (dev_valid_name: 1 to 15 bytes, not "." or "..", no slash, colon or blank), and
// a percent sign, which would make it choose a number.
func checkName(name string) error {
	if len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/:% \t\n\v\f\r\x00") {
		return fmt.Errorf("interface name %q: %w", name, errName)
	}
	return nil
}

var errName = errors.New("want 1 to 15 bytes without slash, colon, percent sign or blank")
