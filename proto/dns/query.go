package dns

import (
	"encoding/binary"
	"fmt"
)

// Query is what a forwarder needs to know about a query. The message itself is
// passed on as it came.
type Query struct {
	// ID is the client's identifier.
	ID uint16
	// Flags is the header's second word, see FlagRD and its like.
	Flags uint16
	// Name is the name asked for: lower case, absolute (final dot), unusual
	// bytes escaped.
	Name string
	// Type and Class are those of the question.
	Type, Class uint16
	// EDNSSize is the UDP payload size that the client announced in an OPT
	// record, in bytes; 0 if it sent none.
	EDNSSize uint16
}

// MaxUDP returns how long a response over UDP may be, in bytes: what the client
// announced, at least MinUDP (RFC 6891 section 6.2.3).
func (q Query) MaxUDP() int { return min(max(int(q.EDNSSize), MinUDP), MaxUDP) }

// NoResponse as RefusedError.Rcode says that nothing may be sent back.
const NoResponse = -1

// RefusedError says why a message is not a query to serve, and what to answer.
type RefusedError struct {
	// Rcode is the response code to answer with, or NoResponse.
	Rcode int
	// Reason says what is wrong.
	Reason string
}

// Error implements error.
func (e *RefusedError) Error() string { return "parse DNS query: " + e.Reason }

// ParseQuery reads a query of one question, whatever its type and class. The
// error is always a *RefusedError: responses and headerless messages are not
// answered (two servers could answer each other for ever), an operation other
// than QUERY is NOTIMP, anything that is not exactly one well-formed question
// with well-formed records behind it is FORMERR (RFC 1035 section 4.1.1).
func ParseQuery(msg []byte) (Query, error) {
	switch {
	case len(msg) < HeaderLen:
		return Query{}, &RefusedError{NoResponse, fmt.Sprintf("%d bytes are no header", len(msg))}
	case flags(msg)&FlagQR != 0:
		return Query{}, &RefusedError{NoResponse, "it is a response"}
	case flags(msg)&opcodeMask != 0:
		return Query{}, &RefusedError{RcodeNotImp, fmt.Sprintf("operation %d is not QUERY", flags(msg)&opcodeMask>>11)}
	case count(msg, questions) != 1:
		return Query{}, &RefusedError{RcodeFormErr, fmt.Sprintf("%d questions instead of 1", count(msg, questions))}
	}
	end, ok := skipQuestion(msg, HeaderLen)
	if !ok {
		return Query{}, &RefusedError{RcodeFormErr, "malformed question"}
	}
	opt, ok := findOPT(msg, end)
	if !ok {
		return Query{}, &RefusedError{RcodeFormErr, "malformed records"}
	}
	return Query{
		ID:       ID(msg),
		Flags:    flags(msg),
		Name:     nameText(msg, HeaderLen),
		Type:     binary.BigEndian.Uint16(msg[end-4:]),
		Class:    binary.BigEndian.Uint16(msg[end-2:]),
		EDNSSize: opt.class,
	}, nil
}

// findOPT walks the records from off to the end of the message, which they must
// fill exactly, and returns the OPT record or a zero record. There may be one,
// among the additional records, owned by the root (RFC 6891 section 6.1.1).
func findOPT(msg []byte, off int) (opt record, ok bool) {
	for section := answers; section <= additionals; section++ {
		for range count(msg, section) {
			r, end, ok := skipRecord(msg, off)
			if !ok {
				return record{}, false
			}
			off = end
			if r.rrtype != TypeOPT {
				continue
			}
			if section != additionals || opt.rrtype == TypeOPT || !r.root {
				return record{}, false
			}
			opt = r
		}
	}
	return opt, off == len(msg)
}

// Matches reports whether response is a response to query: the identifier, the
// operation and the question are the same, except for the case of letters (RFC
// 5452 section 9.1). Where it came from is for the caller to check.
func Matches(query, response []byte) bool {
	if len(query) < HeaderLen || len(response) < HeaderLen {
		return false
	}
	if ID(query) != ID(response) || flags(response)&FlagQR == 0 ||
		flags(query)&opcodeMask != flags(response)&opcodeMask {
		return false
	}
	if count(query, questions) != 1 || count(response, questions) != 1 {
		return false
	}
	end, ok := skipQuestion(query, HeaderLen)
	if !ok || len(response) < end {
		return false
	}
	return equalName(query[HeaderLen:end-4], response[HeaderLen:end-4]) &&
		string(query[end-4:end]) == string(response[end-4:end])
}

// equalName compares two names of equal length on the wire. Length bytes are at
// most 63 and so never change in lower case.
func equalName(a, b []byte) bool {
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}
