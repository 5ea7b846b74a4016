package holder

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// table is where the kernel lists sockets: those of the calling thread's network
// namespace, since a process may have threads in several.
const table = "/proc/thread-self/net/"

// The states of sockets in the table, from include/net/tcp_states.h.
const (
	stateTimeWait = 0x06
	stateUDP      = 0x07 // TCP_CLOSE, which a bound UDP socket shows
	stateListen   = 0x0a
)

// socket is a line of the table.
type socket struct {
	addr  netip.AddrPort
	state uint64
	uid   uint32
	inode uint64
}

// findSocket looks for the socket that keeps addr from being bound. One that waits
// for clients comes before one that only uses the port.
func findSocket(network string, addr netip.AddrPort) (found socket, ok bool) {
	names := []string{network + "6"}
	if addr.Addr().Is4() {
		names = []string{network, network + "6"} // an IPv6 socket may take IPv4 too
	}
	for _, name := range names {
		f, err := os.Open(table + name)
		if err != nil {
			continue // a kernel without IPv6
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			s, valid := parse(sc.Text())
			if !valid || !blocks(s.addr, addr) {
				continue
			}
			if s.state == stateListen || s.state == stateUDP {
				return s, true
			}
			if !ok {
				found, ok = s, true
			}
		}
	}
	return found, ok
}

// blocks reports whether a socket at held may be in the way of one at wanted. An
// IPv6 socket at :: may be in the way of IPv4, which the table does not tell.
func blocks(held, wanted netip.AddrPort) bool {
	h, w := held.Addr().Unmap(), wanted.Addr().WithZone("")
	switch {
	case held.Port() != wanted.Port():
		return false
	case h == w, h.IsUnspecified() && (w.Is4() || h.Is6()):
		return true
	}
	return w.IsUnspecified() && h.Is4() == w.Is4()
}

// parse reads a line of the table. The format is proc_pid_net(5)'s: number, address,
// peer, state, queues, timer, retransmits, uid, timeout, inode.
func parse(line string) (s socket, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return s, false
	}
	if s.addr, ok = parseAddr(f[1]); !ok {
		return s, false
	}
	state, err1 := strconv.ParseUint(f[3], 16, 8)
	uid, err2 := strconv.ParseUint(f[7], 10, 32)
	inode, err3 := strconv.ParseUint(f[9], 10, 64)
	s.state, s.uid, s.inode = state, uint32(uid), inode
	return s, err1 == nil && err2 == nil && err3 == nil && state != stateTimeWait
}

// parseAddr reads HEX:PORT; the address is printed in words of the host's byte
// order.
func parseAddr(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr, uint16(p)), ok && err == nil
}
