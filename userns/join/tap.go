package join

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TAP is an attached TAP device, known by nothing but its descriptor: the questions
// and changes are ioctls of the device (Documentation/networking/tuntap), which need
// no socket of its network namespace and no rights in there.
type TAP struct {
	// Name of the interface.
	Name string
	// VNetHeader says that frames have a vnet header.
	VNetHeader bool
	// Persistent says that the interface outlives its descriptors.
	Persistent bool
	// MAC is the interface's hardware address, zero if the device does not tell.
	MAC [6]byte
}

// ErrNoTAP is wrapped when a descriptor is not what it is taken for.
var ErrNoTAP = errors.New("no attached TAP device (IFF_TAP|IFF_NO_PI)")

// DescribeTAP asks a descriptor which TAP it is. ErrNoTAP when it is none, or one
// whose frames have a packet information header; EBADFD when its interface is gone.
func DescribeTAP(f *os.File) (TAP, error) {
	var flags ifreqFlags
	if err := ioctl(f, unix.TUNGETIFF, unsafe.Pointer(&flags)); err != nil {
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: %w", ErrNoTAP, err)
		}
		return TAP{}, fmt.Errorf("look at the TAP %s: %w", f.Name(), err)
	}
	t := TAP{
		Name:       unix.ByteSliceToString(flags.name[:]),
		VNetHeader: flags.flags&unix.IFF_VNET_HDR != 0,
		Persistent: flags.flags&unix.IFF_PERSIST != 0,
	}
	if flags.flags&(unix.IFF_TAP|unix.IFF_NO_PI) != unix.IFF_TAP|unix.IFF_NO_PI {
		return TAP{}, fmt.Errorf("look at the TAP %s: interface %s has the flags %#x: %w", f.Name(), t.Name, flags.flags, ErrNoTAP)
	}
	var address ifreqAddress
	if ioctl(f, unix.SIOCGIFHWADDR, unsafe.Pointer(&address)) == nil { // else it does not tell
		t.MAC = address.mac
	}
	return t, nil
}

// SetTAPAddress gives the interface behind a descriptor a hardware address.
func SetTAPAddress(f *os.File, mac [6]byte) error {
	address := ifreqAddress{family: unix.ARPHRD_ETHER, mac: mac}
	if err := ioctl(f, unix.SIOCSIFHWADDR, unsafe.Pointer(&address)); err != nil {
		return fmt.Errorf("set address %s on the TAP %s: %w", net.HardwareAddr(mac[:]), f.Name(), err)
	}
	return nil
}

// ReleaseTAP takes back what an engine has set on an interface that outlives its
// descriptors. Who attaches to it next, perhaps without a vnet header, would get frames
// with offloads otherwise, which it cannot understand.
func ReleaseTAP(f *os.File) error {
	size := int32(vnetHeaderDefault)
	err := errors.Join(ioctlValue(f, unix.TUNSETOFFLOAD, 0), ioctl(f, unix.TUNSETVNETHDRSZ, unsafe.Pointer(&size)))
	if err != nil {
		return fmt.Errorf("turn the offloads of the TAP %s off: %w", f.Name(), err)
	}
	return nil
}

// vnetHeaderDefault is the header's size before somebody sets it: struct virtio_net_hdr.
const vnetHeaderDefault = 10

// ifreqAddress is struct ifreq with ifr_hwaddr (netdevice(7)).
type ifreqAddress struct {
	name   [unix.IFNAMSIZ]byte
	family uint16
	mac    [6]byte
	_      [24 - 8]byte
}

// ioctl passes a pointer.
func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	return control(f, func(fd uintptr) unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
		return errno
	})
}

// ioctlValue passes a number.
func ioctlValue(f *os.File, request uint, arg int) error {
	return control(f, func(fd uintptr) unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
		return errno
	})
}

// control makes a call with the file's descriptor, whose blocking mode stays.
func control(f *os.File, call func(fd uintptr) unix.Errno) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) { errno = call(fd) }); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
