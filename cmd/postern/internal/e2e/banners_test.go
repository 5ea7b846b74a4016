package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
)

// banners are servers on the host that no container may reach but by the host's
// own LAN address. They say so to whoever gets there, and note who that was.
type banners struct {
	// wild is a port on all addresses, local one on the loopback addresses only.
	// Neither is one that the kernel gives away (arrangeHost).
	wild, local string

	mu    sync.Mutex
	peers []string // guarded by mu
}

// newBanners starts the servers, TCP and UDP, until the test ends.
func newBanners(t testing.TB) *banners {
	t.Helper()
	b := &banners{wild: "11001", local: "11002"}
	b.listen(t, "4", b.wild, []string{"0.0.0.0"})
	b.listen(t, "6", b.wild, []string{"::"})
	b.listen(t, "4", b.local, []string{"127.0.0.1", "127.0.0.53", "127.1.2.3"})
	b.listen(t, "6", b.local, []string{"::1"})
	return b
}

// listen starts servers for both protocols of a family.
func (b *banners) listen(t testing.TB, family, port string, addrs []string) {
	t.Helper()
	for _, addr := range addrs {
		c, err := net.ListenPacket("udp"+family, net.JoinHostPort(addr, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go b.answer(c)
		l, err := net.Listen("tcp"+family, net.JoinHostPort(addr, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go acceptAll(l, func(c *net.TCPConn) {
			b.note("tcp", c.LocalAddr(), c.RemoteAddr())
			fmt.Fprintln(c, "BANNER of the host")
		})
	}
}

func (b *banners) answer(c net.PacketConn) {
	in := make([]byte, 2048)
	for {
		_, from, err := c.ReadFrom(in)
		if err != nil {
			return
		}
		b.note("udp", c.LocalAddr(), from)
		_, _ = c.WriteTo([]byte("BANNER of the host"), from)
	}
}

func (b *banners) note(proto string, at, from net.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.peers = append(b.peers, fmt.Sprintf("%s at %v from %v", proto, at, from))
}

// seen returns who came, and forgets them.
func (b *banners) seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	peers := b.peers
	b.peers = nil
	return peers
}

func (b *banners) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.peers)
}

// addrPort puts an address and a port together.
func addrPort(addr, port string) netip.AddrPort {
	return netip.MustParseAddrPort(net.JoinHostPort(addr, port))
}

// descriptors counts a process's open descriptors.
func descriptors(t testing.TB, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Logf("descriptors of %d: %v", pid, err)
	}
	return len(names)
}
