package express

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// BenchmarkInstall is what the start of an instance waits for. The parts, measured
// alone: the visit, the sockets, the table, the routes.
func BenchmarkInstall(b *testing.B) {
	w := newWorld(b, endpoints[0])
	cfg := Config{Interface: "tap0", V4: container4, V6: container6, UDP: true}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			p, err := Install(w.target, cfg)
			check(b, err)
			b.StopTimer()
			check(b, p.Close())
			b.StartTimer()
		}
	})
	b.Run("visit", func(b *testing.B) {
		for b.Loop() {
			p := &Path{}
			_, err := p.open(w.target, cfg)
			check(b, err)
			b.StopTimer()
			p.Abandon()
			b.StartTimer()
		}
	})
	p, err := Install(w.target, cfg)
	check(b, err)
	b.Run("table again", func(b *testing.B) {
		for b.Loop() {
			check(b, install(p.nft, p.plan()))
		}
	})
	b.Run("table anew", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			check(b, remove(p.nft))
			b.StartTimer()
			check(b, install(p.nft, p.plan()))
		}
	})
	b.Run("routes", func(b *testing.B) {
		for b.Loop() {
			check(b, rtnl.InstallExpress(p.route, p.numbers()...))
			check(b, rtnl.SetAcceptLocal(p.route, p.iface, true))
		}
	})
	b.Run("repair", func(b *testing.B) {
		for b.Loop() {
			check(b, p.Repair())
		}
	})
	b.Run("close", func(b *testing.B) {
		check(b, p.Close())
		for b.Loop() {
			b.StopTimer()
			p, err := Install(w.target, cfg)
			check(b, err)
			b.StartTimer()
			check(b, p.Close())
		}
	})
}

// BenchmarkConnection is one connection as the kernel makes it: the client's SYN, read
// and written back, accept, close by both.
func BenchmarkConnection(b *testing.B) {
	for _, nat := range []bool{true, false} {
		name := map[bool]string{true: "as installed", false: "without the NAT chain"}[nat]
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, endpoints[0])
			w.express(b)
			check(b, replace(w.path.nft, w.path.plan(), parts{flags: tableOwner, nat: nat}))
			remote := netip.AddrPortFrom(remote4.Addr(), 1000)
			for b.Loop() {
				b.StopTimer()
				if remote = netip.AddrPortFrom(remote.Addr(), remote.Port()+1); remote.Port() > 60000 {
					remote = netip.AddrPortFrom(remote.Addr().Next(), 1000)
				}
				w.forget()
				c := w.socket(b, remote.Addr(), unix.SOCK_STREAM)
				b.StartTimer()
				unix.Connect(c, sockaddr(remote))
				w.writeBack(b, w.await(b, remote, 1))
				s, _, _ := w.accept(b, remote)
				unix.Close(s)
				w.closeKeepingNumber(b, c)
			}
		})
	}
}
