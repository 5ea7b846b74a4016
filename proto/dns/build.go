package dns

import (
	"encoding/binary"
	"net/netip"
)

// ednsSize is the payload size announced in OPT records made here. It fits any
// path without fragments (DNS flag day 2020).
const ednsSize = 1232

// flagDO is the DNSSEC OK bit in the TTL of an OPT record (RFC 3225 section 3).
const flagDO = 1 << 15

// Error returns a response to query with the given response code (0 to 15) and
// no records. The question is echoed if there is one well-formed question. It
// returns nil if query has no header.
func Error(query []byte, rcode int) []byte {
	msg, _ := begin(query, FlagRA|uint16(rcode)&rcodeMask)
	return endEDNS(msg, query)
}

// NXDomain returns the authoritative response that the name does not exist. It
// returns nil if query has no header.
func NXDomain(query []byte) []byte {
	msg, _ := begin(query, FlagAA|FlagRA|RcodeNXDomain)
	return endEDNS(msg, query)
}

// AnswerAddrs returns the authoritative response that the name asked for has
// these addresses: the IPv4 ones for a question of type A, the IPv6 ones for
// AAAA, all for ANY; for other types and classes than IN it says that there are
// no such records. ttl is in seconds. It returns nil if query has no header.
func AnswerAddrs(query []byte, addrs []netip.Addr, ttl uint32) []byte {
	msg, ok := begin(query, FlagAA|FlagRA)
	if !ok {
		return endEDNS(msg, query)
	}
	end := len(msg)
	qtype, class := binary.BigEndian.Uint16(msg[end-4:]), binary.BigEndian.Uint16(msg[end-2:])
	n := uint16(0)
	for _, a := range addrs {
		a = a.Unmap()
		t := TypeA
		if a.Is6() {
			t = TypeAAAA
		}
		if (qtype != t && qtype != TypeANY) || (class != ClassIN && class != ClassANY) {
			continue
		}
		msg = append(msg, 0xc0, HeaderLen) // the owner is the name in the question
		msg = appendRecord(msg, t, ClassIN, ttl, a.WithZone("").AsSlice())
		n++
	}
	binary.BigEndian.PutUint16(msg[4+2*answers:], n)
	return endEDNS(msg, query)
}

// Truncate returns what is sent in place of a response that is too long: its
// header with the TC bit, the question of query and an OPT record if query has
// one (RFC 6891 section 7). Both must have a header, or it returns nil.
func Truncate(query, response []byte) []byte {
	if len(response) < HeaderLen {
		return nil
	}
	msg, _ := begin(query, 0)
	if msg != nil {
		binary.BigEndian.PutUint16(msg[2:], flags(response)|FlagQR|FlagTC)
	}
	return endEDNS(msg, query)
}

// begin starts a response: the header with what is copied from the query
// (identifier, operation, RD, CD: RFC 1035 section 4.1.1, RFC 4035 section
// 3.2.2) and the flags given, and the question; ok says whether there is one.
func begin(query []byte, set uint16) (msg []byte, ok bool) {
	if len(query) < HeaderLen {
		return nil, false
	}
	msg = make([]byte, HeaderLen, MinUDP)
	SetID(msg, ID(query))
	binary.BigEndian.PutUint16(msg[2:], FlagQR|flags(query)&(opcodeMask|FlagRD|FlagCD)|set)
	if count(query, questions) != 1 {
		return msg, false
	}
	end, ok := skipQuestion(query, HeaderLen)
	if !ok {
		return msg, false
	}
	binary.BigEndian.PutUint16(msg[4+2*questions:], 1)
	return append(msg, query[HeaderLen:end]...), true
}

// endEDNS appends an OPT record to a response made by begin if query has one
// (RFC 6891 section 6.1.1: it must then be in the response).
func endEDNS(msg, query []byte) []byte {
	if len(query) < HeaderLen || count(query, questions) != 1 {
		return msg
	}
	end, ok := skipQuestion(query, HeaderLen)
	if !ok {
		return msg
	}
	opt, ok := findOPT(query, end)
	if !ok || opt.rrtype != TypeOPT {
		return msg
	}
	binary.BigEndian.PutUint16(msg[4+2*additionals:], 1)
	return appendRecord(append(msg, 0), TypeOPT, ednsSize, opt.ttl&flagDO, nil)
}

// appendRecord appends what follows the owner's name.
func appendRecord(msg []byte, rrtype, class uint16, ttl uint32, data []byte) []byte {
	msg = binary.BigEndian.AppendUint16(msg, rrtype)
	msg = binary.BigEndian.AppendUint16(msg, class)
	msg = binary.BigEndian.AppendUint32(msg, ttl)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(data)))
	return append(msg, data...)
}
