package express

import (
	"fmt"
	"os"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// AwaitNested waits until the namespace has another interface that is up, besides lo and
// the container's: a bridge, say, behind which published ports may lead. os.ErrClosed
// when stop becomes readable or its other end is closed. It may run at the same time as
// the other methods, but only once, and has to have returned before Close or Abandon.
func (p *Path) AwaitNested(stop *os.File) error {
	if p.links == nil {
		return fmt.Errorf("express path: wait for nested networks: %w", os.ErrClosed)
	}
	if err := rtnl.AwaitOtherLink(p.links, stop, p.iface); err != nil {
		return fmt.Errorf("express path: %w", err)
	}
	return nil
}

// Nest lets the clients of published ports follow other people's rules of destination
// NAT to nested containers. Connections are tracked for it from then on, which costs
// their rate a tenth; those that exist already go on. It stays so, since a connection
// behind a translation would not survive the way back. After an error everything is as
// it was.
func (p *Path) Nest() error {
	if p.nft == nil {
		return fmt.Errorf("express path: %w", os.ErrClosed)
	}
	p.nested = true
	err := rtnl.InstallNested(p.route)
	if err == nil {
		err = install(p.nft, p.plan())
	}
	if err != nil {
		p.nested = false
		_ = rtnl.RemoveNested(p.route) // it may not be there
		return fmt.Errorf("express path: let published ports lead to nested containers: %w", err)
	}
	return nil
}

// chainBehind is just behind destination NAT (-100), chainSettled just before it.
var (
	chainBehind  = chain{"behind", "route", unix.NF_INET_LOCAL_OUT, -99, "clients of published ports that are sent on"}
	chainSettled = chain{"settled", "nat", unix.NF_INET_LOCAL_OUT, -101, "connections that began before there were nested containers"}
)

// Of connection tracking (linux/netfilter/nf_conntrack_common.h).
const (
	dirOriginal = 0      // IP_CT_DIR_ORIGINAL
	dirReply    = 1      // IP_CT_DIR_REPLY
	statusDNAT  = 1 << 5 // IPS_DST_NAT
)

// sentOn takes the mark from what a client sends to a nested container, so that it is
// routed to it, and gives it to the connection. local says that the kernel can tell a
// nested container from a local address (nft_fib), for which the mark has to stay.
func sentOn(local bool) nftRule {
	away := exprs{}
	if local {
		away = exprs{
			&expr.Fib{Register: regA, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: regA, Data: native(unix.RTN_LOCAL)},
		}
	}
	return nftRule{chainBehind, "a nested container's own address is not on lo", concat(
		packetMark.is(rtnl.PublishedMark), flowDirection(dirOriginal), flowStatus(statusDNAT), away,
		flowMark.put(rtnl.PublishedMark), packetMark.put(0)), 0}
}

// answered gives the mark to what comes back.
func answered(c chain, comment string) nftRule {
	return nftRule{c, comment, concat(flowMark.is(rtnl.PublishedMark), flowDirection(dirReply),
		packetMark.put(rtnl.PublishedMark), accept), 0}
}

// settled are rules of the chains with NAT. A flow's first packet decides about its
// translation, and the first packet that is tracked may be from the middle of a
// connection.
func settled(families []family) []nftRule {
	var list []nftRule
	for _, f := range families {
		list = append(list,
			nftRule{chainSettled, "no translation in the middle of a connection",
				concat(packetMark.is(rtnl.PublishedMark), noSYN(), isFamily(f.number), keepDestination(f.number)), f.number},
			nftRule{chainNAT, "clients of published ports keep their address on lo",
				concat(packetMark.is(rtnl.PublishedMark), isFamily(f.number), keepSource(f.number)), f.number})
	}
	return list
}
