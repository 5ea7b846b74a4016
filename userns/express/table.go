package express

import (
	"errors"
	"net/netip"
	"os"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// tableName is our table's name, in the family inet.
const tableName = "postern"

// Table flags and attributes that x/sys lacks (linux/netfilter/nf_tables.h).
const (
	tableOwner       = 2  // NFT_TABLE_F_OWNER: ends with its socket, nobody else changes it; Linux 5.12
	nftaTableComment = 6  // NFTA_TABLE_USERDATA
	nftaChainComment = 12 // NFTA_CHAIN_USERDATA
)

// nfAccept is NF_ACCEPT (linux/netfilter.h).
const nfAccept = 1

// chain is a base chain.
type chain struct {
	name, kind string
	hook       uint32
	priority   int32
	comment    string
}

// The first one is before connection tracking (-200), the next two are behind it and
// before destination NAT (-100): NF_IP_PRI_RAW, NF_IP_PRI_MANGLE. The last one is just
// before everybody else's source NAT (100).
var (
	chainRaw = chain{"raw", "filter", unix.NF_INET_LOCAL_OUT, -300, "what need not be tracked for the rest"}
	chainOut = chain{"out", "route", unix.NF_INET_LOCAL_OUT, -150, "what the container sends, and our sockets answer"}
	chainIn  = chain{"in", "filter", unix.NF_INET_PRE_ROUTING, -150, "what the engine writes back into the interface"}
	chainNAT = chain{"source", "nat", unix.NF_INET_POST_ROUTING, 99, "a masqueraded flow could not change its interface"}
)

// nftRule is a rule, why it is there, and whose family's it is (0: both).
type nftRule struct {
	chain   chain
	comment string
	exprs   exprs
	family  uint8
}

// plan is what the table is made from.
type plan struct {
	iface    string
	families []family
	nested   bool // clients of published ports follow rules of destination NAT
}

// parts are what some kernels lack.
type parts struct {
	flags uint32 // of the table
	nat   bool   // chains of type nat
	fib   bool   // nft_fib
}

// allParts is what is tried first.
var allParts = parts{flags: tableOwner, nat: true, fib: true}

// chains are in the order in which they are added.
func (p plan) chains(has parts) []chain {
	list := []chain{chainRaw, chainOut, chainIn}
	if p.nested {
		list = []chain{chainOut, chainBehind, chainIn}
	}
	if has.nat {
		list = append(list, chainNAT)
	}
	if has.nat && p.nested {
		list = append(list, chainSettled)
	}
	return list
}

// rules are those of all chains.
func (p plan) rules(has parts) []nftRule {
	list := p.outRules()
	if p.nested {
		list = append(list, answered(chainOut, "the kernel's own answers to published ports' clients"), sentOn(has.fib))
	} else {
		list = append(list, nftRule{chainRaw, "clients of published ports, and answers to them",
			concat(packetMark.is(rtnl.PublishedMark), exprs{&expr.Notrack{}}), 0})
	}
	list = append(list, p.inRules()...)
	if has.nat {
		list = append(list, natRules(p.iface, p.families)...)
	}
	if has.nat && p.nested {
		list = append(list, settled(p.families)...)
	}
	return list
}

// outRules are what the express path itself needs at output.
func (p plan) outRules() []nftRule {
	return []nftRule{
		{chainOut, "published ports, see above",
			concat(packetMark.is(rtnl.PublishedMark), accept), 0},
		{chainOut, "datagrams of flows that have gone over, either way",
			concat(flowMark.ours(), isUDP(), packetMark.set(), accept), 0},
		{chainOut, "our sockets' flows stay in here",
			concat(packetMark.ours(), flowMark.ours(), accept), 0},
		{chainOut, "a listener repeats what netstack has answered",
			concat(packetMark.ours(), isTCP(), flowMark.is(rtnl.UniversalMark), drop), 0},
		{chainOut, "our sockets' flows begin",
			concat(packetMark.ours(), flowMark.set(), accept), 0},
		{chainOut, "a connection that begins asks the engine anew",
			concat(flowMark.ours(), bareSYN(), flowMark.clear()), 0},
		{chainOut, "one that netstack had too",
			concat(flowMark.is(rtnl.UniversalMark), bareSYN(), flowMark.clear()), 0},
		{chainOut, "the container's side of such a flow goes to lo",
			concat(flowMark.ours(), packetMark.set()), 0},
	}
}

// inRules are those at prerouting.
func (p plan) inRules() (list []nftRule) {
	for _, f := range p.families {
		if f.udp.IsValid() {
			list = append(list, nftRule{chainIn, "datagrams that follow",
				concat(byLoopback(), packetMark.ours(), isUDP(), comesFrom(f.addr), toSocket(f.udp), accept), f.number})
		}
	}
	list = append(list, nftRule{chainIn, "all else that comes by lo", concat(byLoopback(), accept), 0})
	if p.nested {
		list = append(list, answered(chainIn, "a nested container answers a published port's client"))
	}
	for _, f := range p.families {
		list = append(list, f.rules(p.iface)...)
	}
	// What the container's address sends is dealt with above, so this is netstack's.
	return append(list, nftRule{chainIn, "a connection that the universal path has taken over",
		concat(comesBy(p.iface), isTCP(), flowMark.ours(), flowMark.put(rtnl.UniversalMark)), 0})
}

func (f family) rules(iface string) []nftRule {
	// A copy that the kernel loops back to local members of a multicast group has the
	// same interface and source, but is not addressed to this host.
	written := concat(comesBy(iface), comesFrom(f.addr), metaIs(metaPacketType, packetHost))
	var list []nftRule
	if f.tcp.IsValid() {
		list = append(list, nftRule{chainIn, "a SYN that the engine has dialled for",
			concat(written, bareSYN(), toSocket(f.tcp), packetMark.set(), accept), f.number})
	}
	if f.udp.IsValid() {
		list = append(list,
			nftRule{chainIn, "a datagram whose flow goes over",
				concat(written, isUDP(), toSocket(f.udp), flowMark.set(), packetMark.set(), accept), f.number})
	}
	return append(list, nftRule{chainIn, "nobody else sends from the container's address",
		concat(written, drop), f.number})
}

// natRules are the express path's own. The kernel binds a masqueraded flow to the interface
// that it began on and drops it when it leaves by another (nf_nat_oif_changed).
func natRules(iface string, families []family) []nftRule {
	var list []nftRule
	for _, f := range families {
		list = append(list,
			nftRule{chainNAT, "flows that may go over later",
				concat(leavesBy(iface), comesFrom(f.addr), keepSource(f.number)), f.number},
			nftRule{chainNAT, "flows that our sockets begin",
				concat(packetMark.ours(), isFamily(f.number), keepSource(f.number)), f.number})
	}
	return list
}

// Matches that package expr has no names for (linux/if_packet.h).
const (
	metaPacketType = unix.NFT_META_PKTTYPE
	packetHost     = unix.PACKET_HOST
)

// install replaces the table, whatever it was, in one transaction. An older table of
// ours goes with it; one that another living process owns is EPERM. Kernels before Linux
// 5.12 know no owner, some have no NAT, and then the containers in there have none either.
func install(nft *os.File, p plan) error {
	has := allParts
	for {
		err := replace(nft, p, has)
		switch op := refusedOp(err); {
		case op == opOwn && has.flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)):
			has.flags = 0
		case op == opNAT && has.nat:
			has.nat = false
		case op == opFib && has.fib:
			has.fib = false
		default:
			return err
		}
	}
}

// refusedOp is what the kernel has refused, empty if it has not.
func refusedOp(err error) string {
	if refused, ok := errors.AsType[*rtnl.Error](err); ok {
		return refused.Op
	}
	return ""
}

const (
	opBatch = "change the rules of nf_tables"
	opAny   = "add table inet " + tableName
	opDel   = "delete table inet " + tableName
	opOwn   = "make table inet " + tableName
	opNAT   = "add rules with NAT (nft_chain_nat, nft_nat)"
	opFib   = "add a rule for published ports of nested containers (nft_ct, nft_fib)"
)

func replace(nft *os.File, p plan, has parts) error {
	// A table that is not there cannot be deleted, so it is made first, whatever its
	// flags are.
	list := []rtnl.Request{anyTable(), delTable(), newTable(has.flags)}
	for _, c := range p.chains(has) {
		list = append(list, newChain(c))
	}
	for _, r := range p.rules(has) {
		q, err := newRule(r)
		if err != nil {
			return err
		}
		list = append(list, q)
	}
	return rtnl.Batch(nft, transaction(list))
}

// remove deletes the table; there being none is no error.
func remove(nft *os.File) error {
	q := delTable()
	q.Ignore = []unix.Errno{unix.ENOENT}
	return rtnl.Batch(nft, transaction([]rtnl.Request{q}))
}

// transaction puts a batch's begin and end around (nfnetlink.h).
func transaction(list []rtnl.Request) []rtnl.Request {
	edge := func(kind uint16) rtnl.Request {
		return rtnl.Request{Op: opBatch, Kind: kind, Body: header(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES), Silent: true}
	}
	all := append([]rtnl.Request{edge(unix.NFNL_MSG_BATCH_BEGIN)}, list...)
	return append(all, edge(unix.NFNL_MSG_BATCH_END))
}

// header is struct nfgenmsg.
func header(family uint8, resource uint16) []byte {
	return []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
}

// request starts a message of nf_tables about our table.
func request(op string, message, flags uint16, tableAttr uint16) rtnl.Request {
	return rtnl.Request{
		Op: op, Kind: unix.NFNL_SUBSYS_NFTABLES<<8 | message, Flags: flags,
		Body: text(header(unix.NFPROTO_INET, 0), tableAttr, tableName),
	}
}

func text(b []byte, kind uint16, s string) []byte {
	return rtnl.AppendAttribute(b, kind, append([]byte(s), 0))
}

func number(b []byte, kind uint16, v uint32) []byte {
	return rtnl.AppendAttribute(b, kind, []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func comment(b []byte, kind uint16, s string) []byte {
	return rtnl.AppendAttribute(b, kind, userdata.AppendString(nil, userdata.TypeComment, s))
}

func anyTable() rtnl.Request {
	return request(opAny, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, unix.NFTA_TABLE_NAME)
}

func newTable(flags uint32) rtnl.Request {
	q := request(opOwn, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, unix.NFTA_TABLE_NAME)
	q.Body = number(q.Body, unix.NFTA_TABLE_FLAGS, flags)
	q.Body = comment(q.Body, nftaTableComment, "express path of postern: flows that need not cross the interface")
	return q
}

func delTable() rtnl.Request {
	return request(opDel, unix.NFT_MSG_DELTABLE, 0, unix.NFTA_TABLE_NAME)
}

func newChain(c chain) rtnl.Request {
	op := "add chain " + c.name + " of type " + c.kind
	if c.kind == chainNAT.kind {
		op = opNAT
	}
	q := request(op, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, unix.NFTA_CHAIN_TABLE)
	q.Body = text(q.Body, unix.NFTA_CHAIN_NAME, c.name)
	hook := number(number(nil, unix.NFTA_HOOK_HOOKNUM, c.hook), unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
	q.Body = rtnl.AppendAttribute(q.Body, unix.NLA_F_NESTED|unix.NFTA_CHAIN_HOOK, hook)
	q.Body = number(q.Body, unix.NFTA_CHAIN_POLICY, nfAccept)
	q.Body = text(q.Body, unix.NFTA_CHAIN_TYPE, c.kind)
	q.Body = comment(q.Body, nftaChainComment, c.comment)
	return q
}

func newRule(r nftRule) (rtnl.Request, error) {
	body, err := r.exprs.marshal()
	q := request(r.op(), unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, unix.NFTA_RULE_TABLE)
	q.Body = text(q.Body, unix.NFTA_RULE_CHAIN, r.chain.name)
	q.Body = rtnl.AppendAttribute(q.Body, unix.NLA_F_NESTED|unix.NFTA_RULE_EXPRESSIONS, body)
	q.Body = comment(q.Body, unix.NFTA_RULE_USERDATA, r.comment)
	return q, err
}

// op names the parts of nf_tables that the rule needs, since what the kernel says
// about one that it lacks is ENOENT.
func (r nftRule) op() string {
	switch {
	case r.chain.kind == chainNAT.kind:
		return opNAT
	case r.chain.name == chainBehind.name:
		return opFib
	case r.family == 0:
		return "add a rule with connection tracking (nft_ct)"
	}
	return tproxyOp(r.family)
}

func tproxyOp(number uint8) string {
	return "add " + familyName(number) + " rule with tproxy (nft_tproxy)"
}

func familyName(number uint8) string {
	if number == unix.AF_INET6 {
		return "an IPv6"
	}
	return "an IPv4"
}

// family is what the rules of an address family are made from.
type family struct {
	number   uint8          // AF_INET or AF_INET6
	addr     netip.Addr     // the container's
	tcp, udp netip.AddrPort // where our sockets listen; invalid: there is none
}
