package resolve

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/postern-net/postern/proto/dns"
)

// TestEveryTypePassesByteForByte sends queries of many types through real
// sockets, and looks at the bytes on both ends.
func TestEveryTypePassesByteForByte(t *testing.T) {
	for _, c := range []struct {
		qtype  uint16
		record string
	}{
		{mdns.TypeA, "X.example. 5 IN A 198.51.100.1"},
		{mdns.TypeAAAA, "X.example. 5 IN AAAA 2001:db8::1"},
		{mdns.TypeTXT, `X.example. 5 IN TXT "a" "b\255"`},
		{mdns.TypeMX, "X.example. 5 IN MX 10 mail.X.example."},
		{mdns.TypeSRV, "X.example. 5 IN SRV 1 2 80 web.X.example."},
		{mdns.TypeHTTPS, "X.example. 5 IN HTTPS 1 . alpn=h2,h3 ipv4hint=198.51.100.1"},
		{mdns.TypeSVCB, "X.example. 5 IN SVCB 0 other.example."},
		{mdns.TypePTR, "X.example. 5 IN PTR y.example."},
		{mdns.TypeDNSKEY, "X.example. 5 IN DNSKEY 257 3 13 mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxILfDLUT0rAK9iUzy1L53eKGQ=="},
		{65280, `X.example. 5 IN TYPE65280 \# 4 00ff10ab`},
	} {
		query := packQuery(t, "X.example.", c.qtype)
		var m mdns.Msg
		if err := m.Unpack(query); err != nil {
			t.Fatal(err)
		}
		opt := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
		opt.SetUDPSize(4096)
		opt.SetDo()
		opt.Option = append(opt.Option, &mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"},
			&mdns.EDNS0_LOCAL{Code: 65001, Data: []byte{1, 2, 3}})
		m.Extra = append(m.Extra, opt)
		query, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		response := packResponse(t, query, func(m *mdns.Msg) { m.AuthenticatedData = true; m.Extra = []mdns.RR{opt} }, c.record)
		u := startUpstream(t, always(response))
		f := newForwarder(t, u.addr())
		conn := client(t, f)
		for network, got := range map[string][]byte{"udp": queryUDP(t, f, query), "tcp": queryTCP(t, conn, query)} {
			if !bytes.Equal(got, response) {
				t.Errorf("type %d over %s: response\n%x, want\n%x", c.qtype, network, got, response)
			}
		}
		queries := u.received()
		if len(queries) != 2 {
			t.Fatalf("type %d: %d queries arrived", c.qtype, len(queries))
		}
		for _, q := range queries {
			if !bytes.Equal(withID(q, dns.ID(query)), query) {
				t.Errorf("type %d: query\n%x, want\n%x", c.qtype, q, query)
			}
		}
	}
}

func bigTXT(t *testing.T, query []byte, size int) []byte {
	var records []string
	for range size / 250 {
		records = append(records, `big.example. 5 IN TXT "`+strings.Repeat("x", 237)+`"`)
	}
	return packResponse(t, query, nil, records...)
}

func TestLargeAnswers(t *testing.T) {
	query := packQuery(t, "big.example.", mdns.TypeTXT)
	for _, size := range []int{40_000, 65_000} {
		whole := bigTXT(t, query, size)
		f := newForwarder(t, startUpstream(t, always(whole)).addr())
		if got := queryTCP(t, client(t, f), query); !bytes.Equal(got, whole) {
			t.Errorf("%d bytes over TCP: got %d", len(whole), len(got))
		}
		got := queryUDP(t, f, query)
		if len(got) > dns.MinUDP || got[2]&2 == 0 || !dns.Matches(query, got) {
			t.Errorf("%d bytes over UDP: got %d bytes, flags %x", len(whole), len(got), got[2:4])
		}
	}
}

func TestTruncatedAnswerPasses(t *testing.T) {
	query := packQuery(t, "big.example.", mdns.TypeTXT)
	cut := packResponse(t, query, func(m *mdns.Msg) { m.Truncated = true }, `big.example. 5 IN TXT "x"`)
	u := startUpstream(t, always(cut))
	f := newForwarder(t, u.addr())
	if got := queryUDP(t, f, query); !bytes.Equal(got, cut) {
		t.Errorf("got %x, want %x", got, cut)
	}
}

// TestForgedAnswersAreIgnored sends everything that an attacker or a confused
// server may send before the right answer, and nothing else afterwards.
func TestForgedAnswersAreIgnored(t *testing.T) {
	query := packQuery(t, "bank.example.", mdns.TypeA)
	right := packResponse(t, query, nil, "bank.example. 5 IN A 198.51.100.1")
	evil := packResponse(t, query, nil, "bank.example. 5 IN A 203.0.113.66")
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	u := startUpstream(t, func(q []byte, from netip.AddrPort) [][]byte {
		id := dns.ID(q)
		if from.IsValid() {
			// The right identifier and question, but from another port.
			other.WriteToUDPAddrPort(withID(evil, id), from)
		}
		wrongName := packQuery(t, "bank2.example.", mdns.TypeA)
		notResponse := withID(evil, id)
		notResponse[2] &^= 0x80
		noQuestion := withID(evil, id)[:dns.HeaderLen:dns.HeaderLen]
		return [][]byte{
			withID(evil, id+1),
			withID(evil, id^0x8000),
			withID(packResponse(t, wrongName, nil, "bank2.example. 5 IN A 203.0.113.66"), id),
			withID(packResponse(t, packQuery(t, "bank.example.", mdns.TypeAAAA), nil), id),
			notResponse,
			noQuestion,
			withID(evil, id)[:15],
			bytes.Repeat([]byte{0xc0}, 600),
			withID(right, id),
		}
	})
	f := newForwarder(t, u.addr())
	for network, got := range map[string][]byte{"udp": queryUDP(t, f, query), "tcp": queryTCP(t, client(t, f), query)} {
		if !bytes.Equal(got, right) {
			t.Errorf("over %s: got %x", network, got)
		}
	}
	if n := len(u.received()); n != 2 {
		t.Errorf("%d queries for 2: a forged answer ended a try", n)
	}
}

// TestFloodOfForgedAnswersEndsInTime holds the deadline against a sender that
// always has one more datagram ready.
func TestFloodOfForgedAnswersEndsInTime(t *testing.T) {
	stop := make(chan struct{})
	var u *upstream
	ready := make(chan struct{})
	u = startUpstream(t, func(q []byte, from netip.AddrPort) [][]byte {
		<-ready
		for {
			select {
			case <-stop:
				return nil
			default:
				u.udp.WriteToUDPAddrPort(withID(q, dns.ID(q)+1), from)
			}
		}
	})
	close(ready)
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := exchange(ctx, "udp", u.addr(), packQuery(t, "example.com.", mdns.TypeA))
	if !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil || err == nil {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > patience {
		t.Errorf("took %s", took)
	}
}

// closedPort returns an address on loopback where nothing listens.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestDeadPrimary(t *testing.T) {
	query := packQuery(t, "example.com.", mdns.TypeA)
	right := packResponse(t, query, nil, "example.com. 5 IN A 198.51.100.1")
	hole := startUpstream(t, func([]byte, netip.AddrPort) [][]byte { return nil })
	for name, primary := range map[string]netip.AddrPort{"closed port": closedPort(t), "black hole": hole.addr()} {
		f := newForwarder(t, primary, startUpstream(t, always(right)).addr())
		conn := client(t, f)
		for range 5 {
			if got := queryUDP(t, f, query); !bytes.Equal(got, right) {
				t.Errorf("%s over UDP: %x", name, got)
			}
			if got := queryTCP(t, conn, query); !bytes.Equal(got, right) {
				t.Errorf("%s over TCP: %x", name, got)
			}
		}
	}
}

func TestExchangeErrors(t *testing.T) {
	query := packQuery(t, "example.com.", mdns.TypeA)
	dead := closedPort(t)
	for _, network := range []string{"udp", "tcp"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := exchange(ctx, network, dead, query)
		cancel()
		if err == nil || !strings.Contains(err.Error(), dead.String()) || strings.Contains(err.Error(), "\n") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", network, err)
		}
	}
	hole := startUpstream(t, func([]byte, netip.AddrPort) [][]byte { return nil })
	for _, network := range []string{"udp", "tcp"} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := exchange(ctx, network, hole.addr(), query); err == nil {
			t.Errorf("%s: an answer out of a black hole", network)
		}
	}
}
