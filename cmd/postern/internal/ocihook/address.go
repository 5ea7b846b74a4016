package ocihook

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// AddressTries is how many addresses of a container's own are tried.
const AddressTries = 8

// OwnAddress is the n-th loopback address for a container: always the same for the
// same container, as good as never another's. 127.0/16 is left to those who choose
// by hand, and so are the first and last host of each last part.
func (c Container) OwnAddress(n int) netip.Addr {
	h := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", c.ID, c.Bundle, n))
	return netip.AddrFrom4([4]byte{127, 1 + h[0]%254, h[1], 1 + h[2]%254})
}

// maxTable bounds what is read of one of the kernel's tables, bytes.
const maxTable = 16 << 20

// AddressTaken reports whether some socket of the host is bound to an address,
// which then is not free to be a container's own. What cannot be read is no reason
// against it: binding decides.
func AddressTaken(addr netip.Addr) bool {
	for _, name := range []string{"tcp", "udp"} {
		f, err := os.Open("/proc/self/net/" + name)
		if err != nil {
			continue
		}
		taken := bound(io.LimitReader(f, maxTable), addr, name)
		f.Close()
		if taken {
			return true
		}
	}
	return false
}

// bound looks for an address among the local ones of a table (proc_pid_net(5)):
// hexadecimal, in the byte order of the machine. A TCP socket counts if it listens:
// those of connections that have ended hold no address.
func bound(table io.Reader, addr netip.Addr, name string) bool {
	b := addr.As4()
	want := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[:]))
	const listening = 10 // TCP_LISTEN
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || !strings.HasPrefix(f[1], want+":") {
			continue
		}
		state, err := strconv.ParseUint(f[3], 16, 8)
		if err == nil && (name != "tcp" || state == listening) {
			return true
		}
	}
	return false
}
