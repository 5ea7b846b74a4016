package express

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// The registers that rules use; an address takes more than one word.
const (
	regA = unix.NFT_REG_1
)

// exprs is what a rule consists of: matches, the first of which to fail ends the
// rule, and statements.
type exprs []expr.Any

func concat(parts ...exprs) exprs {
	var all exprs
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// equal compares what is in the register.
func equal(b ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: regA, Data: b} }

// native is a number in the byte order in which the kernel keeps marks.
func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// masked makes register = register & mask ^ xor.
func masked(mask, xor []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: regA, DestRegister: regA, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

// mark is a place where a mark is: the packet's or its flow's.
type mark struct{ load, store expr.Any }

var (
	packetMark = mark{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regA},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regA, SourceRegister: true},
	}
	flowMark = mark{
		&expr.Ct{Key: expr.CtKeyMARK, Register: regA},
		&expr.Ct{Key: expr.CtKeyMARK, Register: regA, SourceRegister: true},
	}
)

// ours matches if the mark is there.
func (m mark) ours() exprs { return m.is(rtnl.ExpressMark) }

func (m mark) is(v uint32) exprs {
	return exprs{m.load, masked(native(rtnl.PublishedMask), native(0)), equal(native(v)...)}
}

// set puts the mark there, clear takes it away; other bits stay as they are.
func (m mark) set() exprs   { return m.put(rtnl.ExpressMark) }
func (m mark) clear() exprs { return m.put(0) }

func (m mark) put(v uint32) exprs {
	return exprs{m.load, masked(native(^uint32(rtnl.PublishedMask)), native(v)), m.store}
}

// metaIs matches a one-byte property of the packet.
func metaIs(key expr.MetaKey, v byte) exprs {
	return exprs{&expr.Meta{Key: key, Register: regA}, equal(v)}
}

// byLoopback matches what comes by lo, whose index is 1 in every network namespace
// (LOOPBACK_IFINDEX, net/flow.h).
func byLoopback() exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyIIF, Register: regA}, equal(native(1)...)}
}

// bareSYN matches the packet that opens a TCP connection, noSYN all other packets of
// TCP (RFC 9293, section 3.1: the flags are in the header's 14th byte).
func bareSYN() exprs { return synIs(expr.CmpOpEq) }
func noSYN() exprs   { return synIs(expr.CmpOpNeq) }

func synIs(op expr.CmpOp) exprs {
	const fin, syn, rst, ack = 1, 2, 4, 16
	return concat(isTCP(), exprs{
		&expr.Payload{DestRegister: regA, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		masked([]byte{fin | syn | rst | ack}, []byte{0}), &expr.Cmp{Op: op, Register: regA, Data: []byte{syn}},
	})
}

// flowDirection matches packets of the flow's one direction.
func flowDirection(v byte) exprs {
	return exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: regA}, equal(v)}
}

// flowStatus matches if the flow has one of those bits.
func flowStatus(bits uint32) exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: regA}, masked(native(bits), native(0)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regA, Data: native(0)},
	}
}

func isTCP() exprs { return metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP) }
func isUDP() exprs { return metaIs(expr.MetaKeyL4PROTO, unix.IPPROTO_UDP) }

// comesBy matches packets by the interface they came in by, leavesBy by that which they
// leave by.
func comesBy(name string) exprs  { return nameIs(expr.MetaKeyIIFNAME, name) }
func leavesBy(name string) exprs { return nameIs(expr.MetaKeyOIFNAME, name) }

func nameIs(key expr.MetaKey, name string) exprs {
	padded := append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
	return exprs{&expr.Meta{Key: key, Register: regA}, equal(padded...)}
}

// isFamily matches packets of an address family.
func isFamily(number uint8) exprs {
	if number == unix.AF_INET6 {
		return metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
	}
	return metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
}

// comesFrom matches packets by their source address.
func comesFrom(a netip.Addr) exprs {
	number, offset := uint8(unix.AF_INET), uint32(12)
	if a.Is6() {
		number, offset = unix.AF_INET6, 8
	}
	return concat(isFamily(number), exprs{
		&expr.Payload{DestRegister: regA, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		equal(a.AsSlice()...),
	})
}

// toSocket gives the packet to the socket of its own four-tuple or else to the one
// that is bound to that address. The rule ends here if neither is transparent.
func toSocket(at netip.AddrPort) exprs {
	family := byte(unix.NFPROTO_IPV4)
	if at.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	// An IPv6 address fills registers 1 to 4 of the small ones, which are register 1
	// of the large ones; the port goes behind it.
	port := uint32(unix.NFT_REG_2)
	return exprs{
		&expr.Immediate{Register: regA, Data: at.Addr().AsSlice()},
		&expr.Immediate{Register: port, Data: binary.BigEndian.AppendUint16(nil, at.Port())},
		&expr.TProxy{Family: family, TableFamily: unix.NFPROTO_INET, RegAddr: regA, RegPort: port},
	}
}

// keepSource translates a flow's source address to itself, which settles it: no later
// chain translates it. keepDestination does so with the destination.
func keepSource(number uint8) exprs      { return keep(number, expr.NATTypeSourceNAT, 12, 8) }
func keepDestination(number uint8) exprs { return keep(number, expr.NATTypeDestNAT, 16, 24) }

// keep gets where the address is in the headers of IPv4 and IPv6.
func keep(number uint8, kind expr.NATType, offset, offset6 uint32) exprs {
	proto, size := byte(unix.NFPROTO_IPV4), uint32(4)
	if number == unix.AF_INET6 {
		proto, offset, size = unix.NFPROTO_IPV6, offset6, 16
	}
	return exprs{
		&expr.Payload{DestRegister: regA, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.NAT{Type: kind, Family: uint32(proto), RegAddrMin: regA, RegAddrMax: regA},
	}
}

var (
	accept = exprs{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = exprs{&expr.Verdict{Kind: expr.VerdictDrop}}
)

// marshal encodes a rule's expressions (NFTA_RULE_EXPRESSIONS).
func (e exprs) marshal() ([]byte, error) {
	var b bytes.Buffer
	for _, x := range e {
		data, err := expr.Marshal(unix.NFPROTO_INET, x)
		if err != nil {
			return nil, err
		}
		b.Write(rtnl.AppendAttribute(nil, unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, data))
	}
	return b.Bytes(), nil
}
