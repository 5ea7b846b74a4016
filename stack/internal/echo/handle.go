package echo

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/hosterr"
)

const (
	// maxQuote is how much of a request is kept for an error: the longest IPv4
	// header, or an IPv6 header with some extensions, and 64 bytes.
	maxQuote = 124

	// defaultTTL is the hop limit that Linux gives by default. One below it was
	// chosen by the program, as traceroute does.
	defaultTTL = 64

	// Message types of echo requests (RFC 792, RFC 4443 section 4.1).
	request4 = 8
	request6 = 128
)

// Handle sends an echo request of the container. It never waits. Only one
// goroutine may call it.
func (t *Table) Handle(r Request) {
	if r.From.Is4() != r.To.Is4() {
		t.cfg.Flows.Counters.Inc(flow.DropMalformed)
		return
	}
	v := t.cfg.Guard.Decide(guard.ICMP, netip.AddrPortFrom(r.To, 0))
	if !v.Allowed() {
		t.refuse(r, v.Reason)
		return
	}
	if r.TTL <= 1 {
		t.sendError(icmp.TimeExceeded, r)
		return
	}
	s, err := t.session(key{r.From, r.ID})
	if err == nil {
		err = t.send(s, v.Dial, r)
	}
	if err == nil || errors.Is(err, errRefused) {
		return
	}
	if kind := hosterr.Of(err).Kind; kind != 0 && kind != icmp.FragmentationNeeded {
		t.sendError(kind, r)
	}
}

// send passes the request on with the bytes that the container chose. The kernel
// fills in the identifier and the checksum.
func (t *Table) send(s *session, dial netip.AddrPort, r Request) error {
	typ := byte(request4)
	if r.To.Is6() {
		typ = request6
	}
	t.msg = append(t.msg[:0], typ, 0, 0, 0, 0, 0)
	t.msg = binary.BigEndian.AppendUint16(t.msg, r.Seq)
	t.msg = append(t.msg, r.Payload...)
	p := hostsock.Packet{To: dial, Payload: t.msg}
	if r.TTL < defaultTTL {
		p.TTL = r.TTL - 1
	}
	s.sending(r)
	s.flow.BytesOut.Add(uint64(len(r.Payload)))
	_, err := t.writer.Send(s.sock, p)
	if err != nil {
		t.cfg.Flows.Counters.Inc(flow.EchoUnavailable)
	}
	return err
}

// refuse answers a request that the guard does not let out. What was meant for
// many hosts gets no answer (RFC 1122 section 3.2.2).
func (t *Table) refuse(r Request, reason string) {
	t.cfg.Flows.Counters.Inc(flow.EchoRefusedGuard)
	if reason != guard.ReasonBroadcast && reason != guard.ReasonMulticast {
		t.sendError(icmp.AdminProhibited, r)
	}
}

func (t *Table) sendError(kind icmp.Kind, r Request) {
	reporter := hosterr.Reporter(kind, netip.Addr{}, r.To, t.cfg.Guard.Plan)
	quote := r.Quote
	if len(quote) == 0 {
		quote = icmp.AppendEcho(nil, icmp.Echo{ID: r.ID, Seq: r.Seq}, r.From, r.To)
	}
	t.cfg.Sender.SendError(kind, 0, reporter, r.From, quote)
}
