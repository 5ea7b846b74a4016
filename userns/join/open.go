package join

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// patience bounds one visit. It takes some milliseconds; a process in there may
// stop our child for good.
const patience = 10 * time.Second

// vnetHeaderSize is the size of struct virtio_net_hdr_mrg_rxbuf, the header that
// stack/tap speaks on a TAP (VIRTIO 1.2, 5.1.6).
const vnetHeaderSize = 12

// Request says which sockets to make besides Route and Diag.
type Request struct {
	// TAP is the name of a TAP interface to create; empty: none.
	TAP string
	// Packet asks for the second network namespace and its sockets.
	Packet bool
}

// Sockets are descriptors that belong to the target's network namespace and, the
// last three, to a new one beside it. What was not asked for is nil.
//
// TAP and Packet are blocking, and that matters: os.NewFile puts a nonblocking
// descriptor on the runtime's poller, and whoever only holds one for another
// process would be woken by every packet.
type Sockets struct {
	// TAP is /dev/net/tun attached to the new interface, with a vnet header
	// of 12 bytes; offloads are not yet set. The interface is down, and it
	// is gone once all copies of the descriptor are closed.
	TAP *os.File
	// Route is an rtnetlink socket (rtnetlink(7)).
	Route *os.File
	// Diag is a sock_diag socket (sock_diag(7)).
	Diag *os.File
	// Packet is an AF_PACKET socket, bound to nothing and receiving
	// nothing until it is (packet(7)).
	Packet *os.File
	// FarRoute is an rtnetlink socket of the new network namespace.
	FarRoute *os.File
	// FarNetNS is the new network namespace itself.
	FarNetNS *os.File
}

// Close closes every descriptor.
func (s *Sockets) Close() error {
	rawfork.CloseAll([]*os.File{s.TAP, s.Route, s.Diag, s.Packet, s.FarRoute, s.FarNetNS})
	return nil
}

// Open makes sockets in the target. The errors keep their errno: ENOENT, EACCES,
// EPERM, ENXIO or ENODEV with "/dev/net/tun" mean that there is no TAP to be had
// (see NoTUN), EBUSY that the interface exists.
func (t *Target) Open(req Request) (*Sockets, error) {
	v, err := t.visit(req)
	if err != nil {
		return nil, err
	}
	if err := t.pay(v); err != nil {
		return nil, err
	}
	return v.sockets, nil
}

// errTUN marks errors about /dev/net/tun.
var errTUN = errors.New("/dev/net/tun")

// NoTUN reports whether an error of Open says that this machine has no
// /dev/net/tun for us, so that a packet socket is the way. The interface's name
// being taken is not such an error.
func NoTUN(err error) bool {
	if !errors.Is(err, errTUN) {
		return false
	}
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EACCES, unix.EPERM, unix.ENXIO, unix.ENODEV, unix.ENOTDIR} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// explain turns a failed step into an error about the target.
func (t *Target) explain(err error) error {
	var step *rawfork.StepError
	if !errors.As(err, &step) {
		return fmt.Errorf("enter %s: %w", t.name, err)
	}
	switch step.What {
	case stepTUN:
		return &tunError{step.Errno}
	case stepUserNS, stepNetNS:
		if step.Errno == unix.EPERM {
			return t.notOwner(step)
		}
	}
	return &placedError{step, t.name}
}

// placedError says in which target a step failed.
type placedError struct {
	step   *rawfork.StepError
	target string
}

func (e *placedError) Error() string {
	return e.step.What + " in " + e.target + ": " + e.step.Errno.Error()
}
func (e *placedError) Unwrap() error { return e.step }

// tunError is about opening /dev/net/tun.
type tunError struct{ errno unix.Errno }

func (e *tunError) Error() string        { return "/dev/net/tun: " + e.errno.Error() }
func (e *tunError) Unwrap() error        { return e.errno }
func (e *tunError) Is(target error) bool { return target == errTUN }

// notOwner says who may enter.
func (t *Target) notOwner(step *rawfork.StepError) error {
	uid, err := ownerUID(t.userns)
	switch {
	case err != nil || uid == uint32(os.Geteuid()):
		return fmt.Errorf("enter %s: %w: %w: it takes CAP_SYS_ADMIN in the user namespace that owns the network namespace", t.name, ErrNotOwner, step)
	default:
		return fmt.Errorf("enter %s: %w: it is uid %d's, we are uid %d: run as that user", t.name, ErrNotOwner, uid, os.Geteuid())
	}
}
