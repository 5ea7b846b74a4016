package supervisor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/join"
)

// A TAP that was handed over is all there is of the container: its network namespace
// cannot be entered, so there are no sockets of it, and nothing can be repaired.

// errNoNetNS is wrapped when something takes entering the network namespace.
var errNoNetNS = errors.New("there is a TAP device that was handed over or a virtual machine, and no network namespace that can be entered")

// errNobodyLeft ends an instance whose container is gone. Nobody failed.
var errNobodyLeft = errors.New("the network has nobody left")

// errTAPGone ends an instance whose TAP is gone.
var errTAPGone = fmt.Errorf("%w: the TAP device that was handed over is gone", errNobodyLeft)

// handedOver makes the endpoint of an open TAP, which it takes over, once.
func handedOver(f *os.File, cfg *Config) maker {
	return func() (endpoint, string, error) {
		e, err := adopt(f, cfg)
		_ = f.Close()
		if errors.Is(err, os.ErrClosed) {
			err = errTAPGone
		}
		return e, "", err
	}
}

// lost says what an engine's failure means that cannot use an endpoint any more which
// nobody can make anew.
func (e *endpoint) lost(why string) error {
	gone := errTAPGone
	if e.kind == handoff.Seqpacket {
		gone = errGuestGone
	}
	if e.present() {
		return errors.New(why)
	}
	return fmt.Errorf("%w: %s", gone, why)
}

// present reports whether there is somebody on the other side of what came to us.
func (e *endpoint) present() bool {
	if e.kind != handoff.Seqpacket {
		_, err := join.DescribeTAP(e.file)
		return err == nil
	}
	p := []unix.PollFd{{Fd: int32(e.file.Fd()), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 0
}

// adopt makes an endpoint of a copy of f.
func adopt(f *os.File, cfg *Config) (endpoint, error) {
	tap, err := join.DescribeTAP(f)
	if err != nil {
		return endpoint{}, err
	}
	if cfg.MAC != [6]byte{} {
		if err := join.SetTAPAddress(f, cfg.MAC); err != nil {
			return endpoint{}, err
		}
		tap.MAC = cfg.MAC
	}
	if tap.MAC == [6]byte{} {
		return endpoint{}, fmt.Errorf("the TAP %s does not tell its hardware address: give one", tap.Name)
	}
	own, err := holdBlocking(f)
	if err != nil {
		return endpoint{}, fmt.Errorf("take the TAP %s over: %w", tap.Name, err)
	}
	e := endpoint{kind: handoff.TAP, file: own, mac: tap.MAC, stays: tap.Persistent}
	if !tap.VNetHeader {
		e.kind = handoff.BareTAP
	}
	return e, nil
}

// holdBlocking returns a copy of f that our runtime does not poll: we only hold it for
// the engine, and would be woken by every packet.
func holdBlocking(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	own, failed := -1, error(nil)
	err = raw.Control(func(fd uintptr) {
		if failed = unix.SetNonblock(int(fd), false); failed == nil {
			own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), f.Name()), nil
}
