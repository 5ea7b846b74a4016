package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// zone is what the remote's name servers know. SERVER says which of them answers.
const zone = `
web.e2e.test.      60 IN A     10.98.0.2
web.e2e.test.      60 IN AAAA  fd98::2
both.e2e.test.     60 IN A     10.98.0.2
both.e2e.test.     60 IN AAAA  fd98::2
alias.e2e.test.    60 IN CNAME web.e2e.test.
mail.e2e.test.     60 IN MX    10 web.e2e.test.
text.e2e.test.     60 IN TXT   "some text" "more text"
_http._tcp.e2e.test. 60 IN SRV 1 2 80 web.e2e.test.
svc.e2e.test.      60 IN HTTPS 1 . alpn=h2,h3 ipv4hint=10.98.0.2
odd.e2e.test.      60 IN TYPE65280 \# 4 CAFEF00D
rebind.e2e.test.   60 IN A     127.0.0.1
rebind.e2e.test.   60 IN AAAA  ::1
`

// bigSize is the text in big.e2e.test's TXT records, bytes.
const bigSize = 40 << 10

// serveDNS starts the remote's name servers in the calling thread's namespace:
// one at remote4 and remote6, another at second4.
func serveDNS() error {
	for addr, name := range map[string]string{remote4: "one", remote6: "one", second4: "two"} {
		handler, err := newZone(name)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", net.JoinHostPort(addr, "53"))
		if err != nil {
			return err
		}
		go func() { _ = (&dns.Server{PacketConn: u, Handler: handler}).ActivateAndServe() }()
		go func() { _ = (&dns.Server{Listener: l, Handler: handler}).ActivateAndServe() }()
	}
	return nil
}

// newZone returns a name server's handler.
func newZone(server string) (dns.HandlerFunc, error) {
	records := map[string][]dns.RR{}
	text := zone + "server.e2e.test. 60 IN TXT " + server + "\n"
	for range bigSize / 200 {
		text += "big.e2e.test. 60 IN TXT " + strings.Repeat("x", 200) + "\n"
	}
	p := dns.NewZoneParser(strings.NewReader(text), ".", "")
	for n := 0; ; n++ {
		rr, ok := p.Next()
		if !ok {
			break
		}
		if txt, isText := rr.(*dns.TXT); isText && rr.Header().Name == "big.e2e.test." {
			txt.Txt[0] = fmt.Sprintf("%06d", n) + txt.Txt[0][6:] // no two records alike
		}
		records[rr.Header().Name] = append(records[rr.Header().Name], rr)
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(answer(records, w, q)) }, nil
}

// answer is a small authoritative name server.
func answer(records map[string][]dns.RR, w dns.ResponseWriter, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 {
		return m.SetRcode(q, dns.RcodeFormatError)
	}
	name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	if strings.HasPrefix(name, "broken.") {
		return m.SetRcode(q, dns.RcodeServerFailure)
	}
	known := records[name]
	if len(known) == 0 {
		return m.SetRcode(q, dns.RcodeNameError)
	}
	for _, rr := range known {
		if t := rr.Header().Rrtype; t == kind || t == dns.TypeCNAME {
			m.Answer = append(m.Answer, rr)
		}
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
			m.SetEdns0(4096, false)
		}
	}
	m.Truncate(size)
	return m
}

// lookup asks server for the records of a type, without retries.
func lookup(ctx context.Context, server, kind, name string) (text []string, err error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.StringToType[kind])
	// Its own limit would be two seconds, which a busy machine may take.
	r, _, err := (&dns.Client{Timeout: patience / 3}).ExchangeContext(ctx, q, net.JoinHostPort(server, "53"))
	switch {
	case err != nil:
		return nil, err
	case r.Rcode != dns.RcodeSuccess:
		return nil, fmt.Errorf("%s %s: %s", name, kind, dns.RcodeToString[r.Rcode])
	}
	for _, rr := range r.Answer {
		text = append(text, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return text, nil
}
