// Package activation takes over listening sockets that came with the process, as
// systemd passes them (sd_listen_fds(3)): LISTEN_FDS says how many descriptors there
// are from 3 on, LISTEN_PID whom they are for, and LISTEN_FDNAMES what they are
// called. Somebody with more rights has bound them, which is how a port below 1024
// can be published without any.
package activation

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
)

// First is the first descriptor that is passed, SD_LISTEN_FDS_START.
const First = 3

// maxFDs bounds how many descriptors are taken over; systemd's own units stay far
// below.
const maxFDs = 4096

// Variables are those of the environment that are for this process only. No child
// may get them.
var Variables = []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES"}

// Inherited is a listening socket that came with the process.
type Inherited struct {
	// Name is FileDescriptorName= of systemd.socket(5), "unknown" if none came.
	// Several may have the same.
	Name string
	// Index counts from 0.
	Index int
	// Network is "tcp", "udp" or "unix", the latter a stream socket.
	Network string
	// Addr is where a tcp or udp socket is bound.
	Addr netip.AddrPort
	// Dual says that it is bound to [::] and takes IPv4 too.
	Dual bool
	// Path is where a unix socket is bound; empty for one without a path.
	Path string
	// File is nonblocking, closed on exec, and not in the runtime's poller.
	File *os.File
}

// Take takes over the sockets that are meant for the process pid, which is the
// caller's own. getenv is os.Getenv. There are none if the variables are for another
// process. A descriptor that is no listening stream socket and no bound UDP socket is
// an error, after which all of them are closed. It must be called once, before the
// program opens anything that could get their numbers.
func Take(getenv func(string) string, pid int) ([]Inherited, error) {
	n, err := Count(getenv, pid, maxFDs)
	if err != nil {
		return nil, fmt.Errorf("inherited listeners: %w", err)
	}
	if n == 0 {
		return nil, nil
	}
	// Before anything can fail: the sockets are not for our children.
	for fd := First; fd < First+n; fd++ {
		unix.CloseOnExec(fd)
	}
	names, err := names(getenv("LISTEN_FDNAMES"), n)
	if err != nil {
		closeFrom(0, n)
		return nil, err
	}
	var all []Inherited
	for i := range n {
		in, err := take(i, names[i])
		if err != nil {
			Close(all)
			closeFrom(i, n)
			return nil, fmt.Errorf("inherited descriptor %d (%q): %w", First+i, names[i], err)
		}
		all = append(all, in)
	}
	return all, nil
}

// Count returns how many descriptors were passed to the process pid, from First on: none
// if the variables are for another process, an error if there are more than most or
// LISTEN_FDS is no number. getenv is os.Getenv.
func Count(getenv func(string) string, pid, most int) (int, error) {
	text := getenv("LISTEN_FDS")
	if getenv("LISTEN_PID") != strconv.Itoa(pid) || text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("LISTEN_FDS is %.32q, want 0 to %d", text, most)
	}
	return n, nil
}

// Close closes sockets that were taken over.
func Close(all []Inherited) {
	for _, in := range all {
		in.File.Close()
	}
}

// closeFrom closes what was passed and not taken over, from index i on.
func closeFrom(i, n int) {
	for ; i < n; i++ {
		unix.Close(First + i)
	}
}

// names splits LISTEN_FDNAMES, which names all of the n or is not there.
func names(text string, n int) ([]string, error) {
	if text == "" {
		all := make([]string, n)
		for i := range all {
			all[i] = "unknown"
		}
		return all, nil
	}
	all := strings.Split(text, ":")
	if len(all) != n {
		return nil, fmt.Errorf("inherited listeners: LISTEN_FDNAMES has %d names for %d descriptors", len(all), n)
	}
	return all, nil
}

// take takes over one socket. If it fails the descriptor is still open.
func take(index int, name string) (Inherited, error) {
	fd := First + index
	in := Inherited{Name: name, Index: index}
	if err := in.inspect(fd); err != nil {
		return in, err
	}
	// The number may be reused once File is closed, so the File has its own.
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, First)
	if err != nil {
		return in, os.NewSyscallError("fcntl", err)
	}
	if in.File, err = bind.Hold(own, "inherited "+name); err != nil {
		return in, err
	}
	unix.Close(fd)
	return in, nil
}

// inspect finds out what fd is, and refuses what cannot be served.
func (in *Inherited) inspect(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("not a socket: %w", err)
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	internet := domain == unix.AF_INET || domain == unix.AF_INET6
	switch {
	case kind == unix.SOCK_STREAM && (internet || domain == unix.AF_UNIX):
		return in.stream(fd, domain, sa)
	case kind == unix.SOCK_DGRAM && internet:
		return in.datagram(fd, domain, sa)
	}
	return fmt.Errorf("socket of type %d and domain %d, want one that listens on TCP or a unix stream socket, or is bound to UDP", kind, domain)
}

func (in *Inherited) stream(fd, domain int, sa unix.Sockaddr) error {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return fmt.Errorf("it does not listen, want a listening socket (systemd.socket(5) with Accept=no)")
	}
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		in.Network = "unix"
		if strings.HasPrefix(u.Name, "/") {
			in.Path = u.Name
		}
		return nil
	}
	in.Network = bind.TCP
	return in.internet(fd, domain, sa)
}

func (in *Inherited) datagram(fd, domain int, sa unix.Sockaddr) error {
	in.Network = bind.UDP
	if _, err := unix.Getpeername(fd); err == nil {
		return fmt.Errorf("a UDP socket with one peer, want one that is bound only")
	}
	if err := bind.ReceiveInfo(fd, domain); err != nil {
		return err
	}
	return in.internet(fd, domain, sa)
}

func (in *Inherited) internet(fd, domain int, sa unix.Sockaddr) error {
	in.Addr = bind.Address(sa)
	if in.Addr.Port() == 0 {
		return fmt.Errorf("it is bound to no port")
	}
	if domain == unix.AF_INET6 && in.Addr.Addr() == netip.IPv6Unspecified() {
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		in.Dual = only == 0
	}
	return nil
}
