package bind

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/holder"
)

// portStart is the first port that needs no privilege (ip-sysctl.rst).
const portStart = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

// Explain wraps an error of Inet with what was attempted, and what can be done
// about it.
func Explain(network string, addr netip.AddrPort, err error) error {
	return withHint(fmt.Errorf("listen on %s %s: %w", network, addr, err), hint(network, addr, err))
}

// ExplainPath is Explain for Unix.
func ExplainPath(path string, err error) error {
	hint := descriptors(err)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		hint = "a process listens there"
	case errors.Is(err, unix.EEXIST):
		hint = "it is no socket, and stays"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		hint = "there is no directory " + filepath.Dir(path)
	}
	return withHint(fmt.Errorf("listen on unix socket %s: %w", path, err), hint)
}

func withHint(err error, hint string) error {
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

func hint(network string, addr netip.AddrPort, err error) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return "held by " + holder.Find(network, addr).String()
	case errors.Is(err, unix.EACCES):
		return privileged(addr.Port(), firstUnprivileged())
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("%s is no address of this host", addr.Addr())
	case errors.Is(err, unix.EAFNOSUPPORT):
		return "this host has no IPv6"
	}
	return descriptors(err)
}

// privileged says how a port below start can be had all the same.
func privileged(port uint16, start int) string {
	if int(port) >= start {
		return ""
	}
	return fmt.Sprintf("net.ipv4.ip_unprivileged_port_start is %d: ask for \"sysctl -w net.ipv4.ip_unprivileged_port_start=%d\", "+
		"or let systemd open the port (socket activation, fd:NAME:CTRPORT), or take a port from %d on", start, port, start)
}

func firstUnprivileged() int {
	b, err := os.ReadFile(portStart)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}

// descriptors says which limit of descriptors was reached.
func descriptors(err error) string {
	var limit unix.Rlimit
	switch {
	case errors.Is(err, unix.ENFILE):
		return "the whole system is out of descriptors (sysctl fs.file-max)"
	case errors.Is(err, unix.EMFILE) && unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil:
		return fmt.Sprintf("RLIMIT_NOFILE is %d: raise it (ulimit -n, systemd's LimitNOFILE=)", limit.Cur)
	}
	return ""
}
