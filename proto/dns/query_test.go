package dns

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// pack builds a query with a codec that is not ours.
func pack(t testing.TB, name string, qtype uint16, change func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = 0x1234
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatalf("pack %s: %v", name, err)
	}
	return b
}

func withEDNS(size uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, true) } }

func TestParseQuery(t *testing.T) {
	longLabel := strings.Repeat("a", 63)
	longName := longLabel + "." + longLabel + "." + longLabel + "." + strings.Repeat("b", 61) + "."
	for _, c := range []struct {
		name   string
		qtype  uint16
		change func(*dns.Msg)
		want   Query
	}{
		{"Example.COM.", dns.TypeA, nil, Query{Name: "example.com.", Type: 1, Class: 1, Flags: FlagRD}},
		{".", dns.TypeNS, nil, Query{Name: ".", Type: 2, Class: 1, Flags: FlagRD}},
		{longName, dns.TypeAAAA, nil, Query{Name: longName, Type: 28, Class: 1, Flags: FlagRD}},
		{"x.example.", dns.TypeHTTPS, withEDNS(4096), Query{Name: "x.example.", Type: 65, Class: 1, Flags: FlagRD, EDNSSize: 4096}},
		{"x.example.", 65280, withEDNS(0), Query{Name: "x.example.", Type: 65280, Class: 1, Flags: FlagRD}},
		{`a\.b.\000\\ .example.`, dns.TypeTXT, nil, Query{Name: `a\.b.\000\\\032.example.`, Type: 16, Class: 1, Flags: FlagRD}},
		{"version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS; m.RecursionDesired = false },
			Query{Name: "version.bind.", Type: 16, Class: 3}},
	} {
		c.want.ID = 0x1234
		got, err := ParseQuery(pack(t, c.name, c.qtype, c.change))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func TestParseQueryRefuses(t *testing.T) {
	good := pack(t, "example.com.", dns.TypeA, nil)
	edns := pack(t, "example.com.", dns.TypeA, withEDNS(1232))
	patch := func(msg []byte, off int, bytes ...byte) []byte {
		m := append([]byte(nil), msg...)
		copy(m[off:], bytes)
		return m
	}
	twoOPTs := append(patch(edns, 10, 0, 2), edns[len(edns)-11:]...)
	// record appends an empty record of type A with this owner.
	record := func(owner ...byte) []byte {
		return append(append(patch(good, 10, 0, 1), owner...), 0, 1, 0, 1, 0, 0, 0, 0, 0, 0)
	}
	if _, err := ParseQuery(record(0xc0, HeaderLen)); err != nil {
		t.Errorf("a record with the question's name: %v", err)
	}
	for name, c := range map[string]struct {
		msg   []byte
		rcode int
	}{
		"empty":                {nil, NoResponse},
		"half a header":        {good[:11], NoResponse},
		"response":             {patch(good, 2, 0x80), NoResponse},
		"status":               {patch(good, 2, 0x10), RcodeNotImp},
		"update":               {patch(good, 2, 0x28), RcodeNotImp},
		"no question":          {good[:HeaderLen:HeaderLen], RcodeFormErr},
		"QDCOUNT 0":            {patch(good, 4, 0, 0), RcodeFormErr},
		"QDCOUNT 2":            {patch(good, 4, 0, 2), RcodeFormErr},
		"cut in the name":      {good[:HeaderLen+5], RcodeFormErr},
		"cut in the type":      {good[:len(good)-3], RcodeFormErr},
		"trailing byte":        {append(append([]byte(nil), good...), 0), RcodeFormErr},
		"pointer to itself":    {patch(good, HeaderLen, 0xc0, HeaderLen), RcodeFormErr},
		"pointer to header":    {patch(good, HeaderLen, 0xc0, 0), RcodeFormErr},
		"extended label":       {patch(good, HeaderLen, 0x41), RcodeFormErr},
		"count without record": {patch(good, 10, 0, 1), RcodeFormErr},
		"all counts 65535":     {patch(good, 6, 255, 255, 255, 255, 255, 255), RcodeFormErr},
		"cut OPT":              {edns[:len(edns)-1], RcodeFormErr},
		"OPT among answers":    {patch(edns, 6, 0, 1, 0, 0, 0, 0), RcodeFormErr},
		"two OPTs":             {twoOPTs, RcodeFormErr},
		"record ahead":         {record(0xc0, byte(len(good)+2)), RcodeFormErr},
		"record at itself":     {record(0xc0, byte(len(good))), RcodeFormErr},
		"record at header":     {record(0xc0, HeaderLen-1), RcodeFormErr},
	} {
		_, err := ParseQuery(c.msg)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Rcode != c.rcode {
			t.Errorf("%s: %v (%+v), want rcode %d", name, err, refused, c.rcode)
		}
	}
}

func TestMaxUDP(t *testing.T) {
	for size, want := range map[uint16]int{0: 512, 100: 512, 512: 512, 1232: 1232, 65535: MaxUDP} {
		if got := (Query{EDNSSize: size}).MaxUDP(); got != want {
			t.Errorf("announced %d: %d, want %d", size, got, want)
		}
	}
}

func TestMatches(t *testing.T) {
	query := pack(t, "example.com.", dns.TypeA, withEDNS(1232))
	answer := func(change func(*dns.Msg)) []byte {
		return pack(t, "example.com.", dns.TypeA, func(m *dns.Msg) {
			m.Response = true
			if change != nil {
				change(m)
			}
		})
	}
	for name, c := range map[string]struct {
		response []byte
		want     bool
	}{
		"same":               {answer(nil), true},
		"other case":         {answer(func(m *dns.Msg) { m.Question[0].Name = "EXAMPLE.com." }), true},
		"failure":            {answer(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), true},
		"other id":           {answer(func(m *dns.Msg) { m.Id++ }), false},
		"not a response":     {answer(func(m *dns.Msg) { m.Response = false }), false},
		"other operation":    {answer(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), false},
		"other name":         {answer(func(m *dns.Msg) { m.Question[0].Name = "example.org." }), false},
		"longer name":        {answer(func(m *dns.Msg) { m.Question[0].Name = "a.example.com." }), false},
		"other type":         {answer(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }), false},
		"other class":        {answer(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), false},
		"no question":        {answer(func(m *dns.Msg) { m.Question = nil }), false},
		"header only":        {answer(nil)[:HeaderLen], false},
		"empty":              {nil, false},
		"cut in the name":    {answer(nil)[:HeaderLen+4], false},
		"another's question": {answer(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), false},
	} {
		if got := Matches(query, c.response); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add(pack(f, "example.com.", dns.TypeHTTPS, withEDNS(4096)))
	f.Add(pack(f, "example.com.", dns.TypeSVCB, nil))
	f.Add(pack(f, `a\.b\000.example.`, 65280, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }))
	f.Add([]byte("\x124\x01\x00\x00\x01\x00\x01\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01\xc0\x1e\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := string(msg)
		q, err := ParseQuery(msg)
		refused := (*RefusedError)(nil)
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("error of type %T", err)
		}
		if string(msg) != before {
			t.Fatal("the query was changed")
		}
		if err == nil {
			checkParsed(t, msg, q)
		}
	})
}

// checkParsed holds what ParseQuery accepted against responses built for it and
// against the other codec, where that one accepts it too.
func checkParsed(t *testing.T, msg []byte, q Query) {
	for _, r := range [][]byte{Error(msg, RcodeServFail), NXDomain(msg), AnswerAddrs(msg, addrs("192.0.2.1", "2001:db8::1"), 1)} {
		if !Matches(msg, r) {
			t.Fatalf("response %x does not match query %x", r, msg)
		}
		if tr := Truncate(msg, r); !Matches(msg, tr) || len(tr) > MinUDP {
			t.Fatalf("truncated response %x to query %x", tr, msg)
		}
		if err := new(dns.Msg).Unpack(r); err != nil {
			t.Fatalf("response %x: %v", r, err)
		}
	}
	var m dns.Msg
	if m.Unpack(msg) != nil || len(m.Question) != 1 {
		return
	}
	if !sameName(t, m.Question[0].Name, q.Name) || m.Question[0].Qtype != q.Type || m.Question[0].Qclass != q.Class {
		t.Fatalf("got %+v, the other codec says %+v", q, m.Question[0])
	}
	if opt := m.IsEdns0(); (opt != nil && opt.UDPSize() != q.EDNSSize) || (opt == nil && q.EDNSSize != 0) {
		t.Fatalf("EDNS size %d, the other codec says %v", q.EDNSSize, opt)
	}
}

// sameName compares names in text form by their bytes on the wire, because the
// text form leaves open what is escaped and how.
func sameName(t *testing.T, a, b string) bool {
	wire := func(s string) string {
		buf := make([]byte, 2*maxName)
		n, err := dns.PackDomainName(s, buf, 0, nil, false)
		if err != nil {
			t.Fatalf("name %q: %v", s, err)
		}
		for i := range n {
			buf[i] = lower(buf[i])
		}
		return string(buf[:n])
	}
	return wire(a) == wire(b)
}

func FuzzMatches(f *testing.F) {
	q := pack(f, "example.com.", dns.TypeA, nil)
	f.Add(q, Error(q, RcodeRefused))
	f.Add(q, q)
	f.Fuzz(func(t *testing.T, query, response []byte) {
		if !Matches(query, response) {
			return
		}
		if ID(query) != ID(response) || flags(response)&FlagQR == 0 {
			t.Fatalf("%x matches %x", response, query)
		}
		if !Matches(query, Truncate(query, response)) {
			t.Fatalf("truncated response to %x does not match", query)
		}
		IsNegative(response)
	})
}
