package dns

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func unpack(t *testing.T, b []byte) *dns.Msg {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		t.Fatalf("unpack %x: %v", b, err)
	}
	return &m
}

func TestError(t *testing.T) {
	m := unpack(t, Error(pack(t, "Example.com.", dns.TypeMX, func(m *dns.Msg) {
		m.CheckingDisabled = true
		m.SetEdns0(4096, true)
	}), RcodeServFail))
	if m.Id != 0x1234 || !m.Response || !m.RecursionDesired || !m.RecursionAvailable || !m.CheckingDisabled || m.Authoritative || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("header %+v", m.MsgHdr)
	}
	if len(m.Question) != 1 || m.Question[0].Name != "Example.com." || m.Question[0].Qtype != dns.TypeMX {
		t.Errorf("question %v", m.Question)
	}
	if o := m.IsEdns0(); o == nil || !o.Do() || o.Version() != 0 {
		t.Errorf("OPT %v", o)
	}
	if m := unpack(t, Error(pack(t, "example.com.", dns.TypeA, nil), RcodeRefused)); m.IsEdns0() != nil {
		t.Error("an OPT record in a response to a query without one")
	}
}

func TestErrorOfMalformed(t *testing.T) {
	good := pack(t, "example.com.", dns.TypeA, nil)
	if got := Error(good[:11], RcodeFormErr); got != nil {
		t.Errorf("response %x to half a header", got)
	}
	m := unpack(t, Error(good[:len(good)-1], RcodeFormErr))
	if m.Id != 0x1234 || m.Rcode != dns.RcodeFormatError || len(m.Question) != 0 {
		t.Errorf("got %v", m)
	}
	notify := unpack(t, Error(pack(t, "example.com.", dns.TypeSOA, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), RcodeNotImp))
	if notify.Opcode != dns.OpcodeNotify || notify.Rcode != dns.RcodeNotImplemented || len(notify.Question) != 1 {
		t.Errorf("got %v", notify)
	}
}

func TestAnswerAddrs(t *testing.T) {
	own := addrs("10.0.2.2", "fd00::2", "::ffff:10.0.2.9")
	for _, c := range []struct {
		qtype, class uint16
		want         []string
	}{
		{dns.TypeA, dns.ClassINET, []string{"10.0.2.2", "10.0.2.9"}},
		{dns.TypeAAAA, dns.ClassINET, []string{"fd00::2"}},
		{dns.TypeANY, dns.ClassINET, []string{"10.0.2.2", "fd00::2", "10.0.2.9"}},
		{dns.TypeMX, dns.ClassINET, nil},
		{dns.TypeHTTPS, dns.ClassINET, nil},
		{dns.TypeA, dns.ClassCHAOS, nil},
	} {
		q := pack(t, "Host.example.", c.qtype, func(m *dns.Msg) { m.Question[0].Qclass = c.class; m.SetEdns0(1232, false) })
		b := AnswerAddrs(q, own, 60)
		m := unpack(t, b)
		var got []string
		for _, rr := range m.Answer {
			if h := rr.Header(); h.Name != "Host.example." || h.Ttl != 60 || h.Class != dns.ClassINET {
				t.Errorf("record %v", rr)
			}
			switch rr := rr.(type) {
			case *dns.A:
				got = append(got, rr.A.String())
			case *dns.AAAA:
				got = append(got, rr.AAAA.String())
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("type %d class %d: %s", c.qtype, c.class, d)
		}
		if !m.Authoritative || m.Rcode != dns.RcodeSuccess || m.IsEdns0() == nil || !Matches(q, b) || IsNegative(b) != (got == nil) {
			t.Errorf("type %d class %d: %v", c.qtype, c.class, m)
		}
	}
	if AnswerAddrs(nil, []netip.Addr{}, 0) != nil {
		t.Error("an answer to nothing")
	}
}

func TestNXDomain(t *testing.T) {
	q := pack(t, "no.example.", dns.TypeA, nil)
	b := NXDomain(q)
	if m := unpack(t, b); m.Rcode != dns.RcodeNameError || !m.Authoritative || !Matches(q, b) || !IsNegative(b) {
		t.Errorf("got %v", m)
	}
}

func TestTruncate(t *testing.T) {
	q := pack(t, "big.example.", dns.TypeTXT, withEDNS(1232))
	long := new(dns.Msg).SetReply(unpack(t, q))
	long.AuthenticatedData = true
	for range 20 {
		rr, err := dns.NewRR("big.example. 5 IN TXT " + strings.Repeat("x", 200))
		if err != nil {
			t.Fatal(err)
		}
		long.Answer = append(long.Answer, rr)
	}
	response, err := long.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b := Truncate(q, response)
	m := unpack(t, b)
	if !m.Truncated || !m.AuthenticatedData || len(m.Answer) != 0 || m.IsEdns0() == nil || !Matches(q, b) || IsNegative(b) {
		t.Errorf("got %v", m)
	}
	if Truncate(q, response[:5]) != nil || Truncate(q[:5], response) != nil {
		t.Error("half a header was truncated to something")
	}
}

func TestFrames(t *testing.T) {
	q := pack(t, "example.com.", dns.TypeA, nil)
	big := append(append([]byte(nil), q...), make([]byte, MaxMessage-len(q))...)
	var b bytes.Buffer
	for _, m := range [][]byte{q, big, q} {
		if err := WriteMessage(&b, m); err != nil {
			t.Fatal(err)
		}
	}
	stream := b.Bytes()
	for i, want := range [][]byte{q, big, q} {
		got, err := ReadMessage(&b, MaxMessage)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("message %d: %d bytes, %v", i, len(got), err)
		}
	}
	if _, err := ReadMessage(&b, MaxMessage); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for _, n := range []int{1, 2, 20} {
		if _, err := ReadMessage(bytes.NewReader(stream[:n]), MaxMessage); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	for _, prefix := range []string{"\x00\x00", "\x00\x0b", "\x10\x01"} {
		if _, err := ReadMessage(strings.NewReader(prefix+strings.Repeat("x", 5000)), 4096); err == nil {
			t.Errorf("length %x accepted", prefix)
		}
	}
	if WriteMessage(io.Discard, append(big, 0)) == nil {
		t.Error("a message of 65536 bytes was written")
	}
}
