package tcpout

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// hostKeepalive finds outside peers that vanished, and keeps the mapping of a
// NAT on the way alive: home routers forget idle ones after some minutes
// (RFC 5382 REQ-5 asks for at least two hours and four minutes).
var hostKeepalive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 9}

// HostDialer returns a Dialer that uses the process's own network. The
// addresses choose the source of outgoing connections by family; the zero value
// leaves it to the host's routes.
func HostDialer(outbound4, outbound6 netip.Addr) Dialer {
	return func(ctx context.Context, target netip.AddrPort) (*net.TCPConn, error) {
		var d net.Dialer
		d.KeepAliveConfig = hostKeepalive
		source, network := outbound4, "tcp4"
		if target.Addr().Is6() {
			source, network = outbound6, "tcp6"
		}
		local := netip.AddrPort{}
		if source.IsValid() {
			local = netip.AddrPortFrom(source, 0)
		}
		if target.Addr().IsLoopback() {
			local = netip.AddrPort{} // the gateway alias: loopback has its own source
		}
		return d.DialTCP(ctx, network, local, target)
	}
}
