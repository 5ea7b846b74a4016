package dns

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of what is taken from a resolv.conf. resolv.conf(5) knows 3 name
// servers (MAXNS) and, since glibc 2.26, any number of search domains; these
// bounds only keep a strange file from growing without end.
const (
	// MaxNameservers is how many name servers are taken, in order.
	MaxNameservers = 16
	// MaxSearch is how many search domains are taken.
	MaxSearch = 32
	// MaxOptions is how many options are taken.
	MaxOptions = 32

	// maxDomain is the length of a domain in text form with its final dot
	// (RFC 1035 section 2.3.4: 255 octets on the wire).
	maxDomain = 254
	// maxOption is far above the longest option that exists ("no-tld-query").
	maxOption = 63
	// maxLine holds MaxSearch domains of full length; longer lines are ignored.
	maxLine = 8192
)

// ResolvConf is what a resolv.conf says, as resolv.conf(5) reads it.
type ResolvConf struct {
	// Nameservers are the servers in order, without duplicates. Link-local IPv6
	// addresses keep their zone; IPv4-mapped addresses are unmapped.
	Nameservers []netip.Addr
	// Search is the search list; the last search or domain line wins.
	Search []string
	// Options are the words of all options lines, in order.
	Options []string
}

// ParseResolvConf reads a resolv.conf. Like the resolver itself it never fails:
// what it does not understand it skips. A byte order mark, CRLF line ends,
// leading blanks and trailing comments are tolerated.
func ParseResolvConf(text []byte) ResolvConf {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	var rc ResolvConf
	for line := range bytes.Lines(text) {
		if len(line) > maxLine {
			continue
		}
		if words := fields(line); len(words) > 1 {
			rc.add(words[0], words[1:])
		}
	}
	return rc
}

// add takes in one line: a keyword and at least one argument.
func (rc *ResolvConf) add(keyword string, args []string) {
	switch keyword {
	case "nameserver":
		addr, ok := parseNameserver(args[0])
		if ok && len(rc.Nameservers) < MaxNameservers && !slices.Contains(rc.Nameservers, addr) {
			rc.Nameservers = append(rc.Nameservers, addr)
		}
	case "domain":
		args = args[:1]
		fallthrough
	case "search":
		rc.Search = keep(args, maxDomain, MaxSearch)
	case "options":
		rc.Options = keep(slices.Concat(rc.Options, args), maxOption, MaxOptions)
	}
}

// fields splits a line at blanks, without its line end and up to the first word
// that starts a comment.
func fields(line []byte) []string {
	words := strings.FieldsFunc(string(line), func(r rune) bool {
		return r == ' ' || r == '\t' || r == '\r' || r == '\n'
	})
	if i := slices.IndexFunc(words, func(w string) bool { return w[0] == '#' || w[0] == ';' }); i >= 0 {
		words = words[:i]
	}
	return words
}

// parseNameserver takes an address that can be sent to. A zone is meaningful
// for link-local addresses only (RFC 4007 section 6).
func parseNameserver(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.IsMulticast() {
		return netip.Addr{}, false
	}
	if addr.Zone() != "" && (!addr.IsLinkLocalUnicast() || !isWord(addr.Zone(), maxOption)) {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// keep returns the first n of words that are safe in a resolv.conf line.
func keep(words []string, maxLen, n int) []string {
	var kept []string
	for _, w := range words {
		if len(kept) < n && isWord(w, maxLen) {
			kept = append(kept, w)
		}
	}
	return kept
}

// isWord reports whether w is one word of printable ASCII that does not start a
// comment, so that it reads back as itself and cannot add a line.
func isWord(w string, maxLen int) bool {
	if w == "" || len(w) > maxLen || w[0] == '#' || w[0] == ';' {
		return false
	}
	return !strings.ContainsFunc(w, func(r rune) bool { return r <= ' ' || r > '~' })
}

// WriteResolvConf returns the text of a resolv.conf. Words that would not read
// back as themselves are left out, and so is what exceeds the bounds above:
// ParseResolvConf of the result gives what was written.
func WriteResolvConf(servers []netip.Addr, search, options []string) []byte {
	var rc ResolvConf
	for _, s := range servers {
		rc.add("nameserver", []string{s.String()})
	}
	var b strings.Builder
	for _, s := range rc.Nameservers {
		b.WriteString("nameserver " + s.String() + "\n")
	}
	writeLine(&b, "search", keep(search, maxDomain, MaxSearch))
	writeLine(&b, "options", keep(options, maxOption, MaxOptions))
	return []byte(b.String())
}

func writeLine(b *strings.Builder, keyword string, words []string) {
	if len(words) > 0 {
		b.WriteString(keyword + " " + strings.Join(words, " ") + "\n")
	}
}
