package inet

import "strings"

// Limits of a DNS name on the wire, in bytes (RFC 1035 section 2.3.4).
const (
	maxLabel = 63
	maxName  = 255
)

// AppendName appends a domain name as DNS and the DHCP and RA options carry it,
// labels with length bytes and without compression (RFC 1035 section 3.1). A dot
// at the end is optional. A name with an empty or too long label, or too long
// altogether, appends nothing and is not ok; so is the root, which means nothing
// in a search list.
func AppendName(b []byte, name string) (out []byte, ok bool) {
	name = strings.TrimSuffix(name, ".")
	if len(name)+2 > maxName {
		return b, false
	}
	out = b
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return b, false
		}
		out = append(out, byte(len(label)))
		out = append(out, label...)
	}
	return append(out, 0), true
}

// AppendNames appends as many of the names as fit in room bytes, in order. A
// name that is not valid, or too long for what is left, is skipped.
func AppendNames(b []byte, names []string, room int) []byte {
	for _, name := range names {
		out, ok := AppendName(b, name)
		if grown := len(out) - len(b); ok && grown <= room {
			b, room = out, room-grown
		}
	}
	return b
}
