package express

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
)

// state is that of the container's socket (include/net/tcp_states.h).
type state uint8

// The states that make a difference; none means that there is no socket.
const (
	none        state = 0
	established state = 1
	synSent     state = 2
)

// lookup tells the state of the socket of the container's own netns that a flow's
// initiating side is.
type lookup interface {
	state(k flow.Key) (state, error)
}

// sockDiagByFamily is SOCK_DIAG_BY_FAMILY (linux/sock_diag.h).
const sockDiagByFamily = 20

// Layout of a request: struct nlmsghdr (netlink(7)), then struct inet_diag_req_v2
// (linux/inet_diag.h), whose end is struct inet_diag_sockid. Ports and addresses are in
// network order, the rest in ours.
const (
	requestLen = unix.NLMSG_HDRLEN + 56

	atFamily   = unix.NLMSG_HDRLEN
	atProtocol = atFamily + 1
	atStates   = atFamily + 4
	atID       = atFamily + 8
	atCookie   = atID + 40
)

// Layout of an answer: struct inet_diag_msg after the header.
const (
	answerLen  = unix.NLMSG_HDRLEN + 72
	atState    = unix.NLMSG_HDRLEN + 1
	atAnswerID = unix.NLMSG_HDRLEN + 4
	// tupleLen is how much of inet_diag_sockid are ports and addresses.
	tupleLen = 36
)

// request asks for the one socket whose own address is the initiating side of k and
// whose peer's the target (sock_diag(7): a request without NLM_F_DUMP). The kernel looks
// it up as it does for a packet that arrives. For UDP it wants the two exchanged, "for
// historical reasons" (udp_dump_one in net/ipv4/udp_diag.c).
func request(b *[requestLen]byte, k flow.Key, seq uint32) {
	own, peer, protocol := k.Initiating, k.Target, byte(unix.IPPROTO_TCP)
	if k.Proto == flow.UDP {
		own, peer, protocol = peer, own, unix.IPPROTO_UDP
	}
	*b = [requestLen]byte{}
	binary.NativeEndian.PutUint32(b[0:], requestLen)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b[atFamily] = unix.AF_INET
	if k.Initiating.Addr().Is6() {
		b[atFamily] = unix.AF_INET6
	}
	b[atProtocol] = protocol
	binary.NativeEndian.PutUint32(b[atStates:], ^uint32(0))
	binary.BigEndian.PutUint16(b[atID:], own.Port())
	binary.BigEndian.PutUint16(b[atID+2:], peer.Port())
	putAddr(b[atID+4:], own.Addr())
	putAddr(b[atID+20:], peer.Addr())
	binary.NativeEndian.PutUint64(b[atCookie:], ^uint64(0)) // INET_DIAG_NOCOOKIE
}

func putAddr(b []byte, a netip.Addr) {
	if a.Is4() {
		v4 := a.As4()
		copy(b, v4[:])
		return
	}
	v6 := a.As16()
	copy(b, v6[:])
}

// errStale is an answer to an earlier request.
var errStale = errors.New("answer to another request")

// answer reads the answer to a request for a TCP socket. A listener, which the kernel
// finds where no connection has the addresses, counts as none.
func answer(b []byte, asked *[requestLen]byte) (state, error) {
	switch err := header(b, asked); {
	case errors.Is(err, unix.ENOENT):
		return none, nil
	case err != nil:
		return none, err
	case len(b) < answerLen || !sameTuple(b, asked):
		return none, nil
	}
	return state(b[atState]), nil
}

// header reads an answer as far as it is common to all. ENOENT says that there is no
// such socket.
func header(b []byte, asked *[requestLen]byte) error {
	if len(b) < unix.NLMSG_HDRLEN+4 {
		return unix.EBADMSG
	}
	if binary.NativeEndian.Uint32(b[8:]) != binary.NativeEndian.Uint32(asked[8:]) {
		return errStale
	}
	switch binary.NativeEndian.Uint16(b[4:]) {
	case unix.NLMSG_ERROR:
		return syscall.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])))
	case sockDiagByFamily:
		return nil
	}
	return unix.EBADMSG
}

// sameTuple compares ports and addresses. Those of IPv4 that an IPv6 socket has are
// told in their mapped form.
func sameTuple(b []byte, asked *[requestLen]byte) bool {
	if b[unix.NLMSG_HDRLEN] == asked[atFamily] {
		return string(b[atAnswerID:atAnswerID+tupleLen]) == string(asked[atID:atID+tupleLen])
	}
	if asked[atFamily] != unix.AF_INET || string(b[atAnswerID:atAnswerID+4]) != string(asked[atID:atID+4]) {
		return false
	}
	for _, at := range [...]int{4, 20} {
		told := netip.AddrFrom16([16]byte(b[atAnswerID+at : atAnswerID+at+16])).Unmap()
		if told != netip.AddrFrom4([4]byte(asked[atID+at:atID+at+4])) {
			return false
		}
	}
	return true
}

// Diag is a sock_diag socket of the container's netns. It is safe for concurrent use.
type Diag struct {
	mu  sync.Mutex // guards the fields below, one question at a time
	fd  int
	seq uint32
	req [requestLen]byte
	buf [1024]byte // the kernel writes answers of some 200 bytes; more is cut off
}

// OpenDiag returns a Diag with a copy of a socket, which stays the caller's.
func OpenDiag(f *os.File) (*Diag, error) {
	fd, err := copyOf(f)
	if err != nil {
		return nil, fmt.Errorf("start express: sock_diag socket: %w", err)
	}
	return newDiag(fd), nil
}

// newDiag takes fd over.
func newDiag(fd int) *Diag { return &Diag{fd: fd} }

// Close closes the socket. Questions that come later get errors.
func (d *Diag) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = unix.Close(d.fd)
	d.fd = -1
}

// maxStale is how many answers to earlier requests are passed over. There are none
// unless a call was interrupted in between.
const maxStale = 8

// Sends reports whether a UDP socket of the container's own netns is bound to where a
// datagram came from, and would get the answer of to. Where the kernel cannot tell
// (udp_diag is not there), nobody does.
func (d *Diag) Sends(from, to netip.AddrPort) bool {
	k := flow.Key{Proto: flow.UDP, Initiating: from, Target: to}
	found := false
	err := d.ask(k, func(b []byte) error {
		err := header(b, &d.req)
		found = err == nil && len(b) >= answerLen && binary.BigEndian.Uint16(b[atAnswerID:]) == from.Port()
		return err
	})
	return err == nil && found
}

// state asks the kernel for a TCP socket.
func (d *Diag) state(k flow.Key) (s state, err error) {
	err = d.ask(k, func(b []byte) (err error) {
		s, err = answer(b, &d.req)
		return err
	})
	return s, err
}

// ask asks the kernel and has read look at what it says. The answer is there when the
// request has been sent: the kernel works on it within the call.
func (d *Diag) ask(k flow.Key, read func([]byte) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	request(&d.req, k, d.seq)
	if _, errno := transfer(unix.SYS_SENDTO, d.fd, d.req[:]); errno != 0 {
		return failed(k, "sendto", errno)
	}
	for range maxStale {
		n, errno := transfer(unix.SYS_RECVFROM, d.fd, d.buf[:])
		if errno != 0 {
			return failed(k, "recvfrom", errno)
		}
		err := read(d.buf[:n])
		if errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look up the %s socket from %s to %s: %w", k.Proto, k.Initiating, k.Target, err)
		}
		return nil
	}
	return failed(k, "recvfrom", unix.EBADMSG)
}

func failed(k flow.Key, call string, errno syscall.Errno) error {
	return fmt.Errorf("look up the %s socket from %s to %s: %w", k.Proto, k.Initiating, k.Target, os.NewSyscallError(call, errno))
}

// transfer is send(2) or recv(2), again after EINTR. Neither waits, so the scheduler is
// not told.
func transfer(call uintptr, fd int, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
