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
var errNoNetNS = errors.New("a TAP device was handed over, and its network namespace cannot be entered")

// errTAPGone ends an instance whose TAP is gone. Nobody failed.
var errTAPGone = errors.New("the TAP device that was handed over is gone")

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

// lost says what an engine's failure means that cannot use the TAP any more.
func lost(f *os.File, why string) error {
	if _, err := join.DescribeTAP(f); err != nil {
		return fmt.Errorf("%w: %s", errTAPGone, why)
	}
	return errors.New(why)
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
