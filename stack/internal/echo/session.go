package echo

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/hosterr"
)

// maxTargets is how many addresses one identifier may have asked: a ping program
// asks one, fping some hundreds with one identifier.
const maxTargets = 1024

// session is one identifier with its socket.
type session struct {
	t    *Table
	key  key
	flow *flow.Flow
	sock *hostsock.Socket

	used time.Time // of the last request; guarded by Table.mu

	mu    sync.Mutex // guards the fields below
	peers hostsock.Peers
	last  sent
}

// sent is what is kept of the request sent last.
type sent struct {
	to    netip.Addr
	seq   uint16
	quote []byte
}

var _ hostsock.Handler = (*session)(nil)

// session returns the session of k, making one if there is none.
func (t *Table) session(k key) (*session, error) {
	now := t.now()
	t.mu.Lock()
	s, closed := t.sessions[k], t.closed
	if s != nil {
		s.used = now
	}
	t.mu.Unlock()
	switch {
	case s != nil:
		return s, nil
	case closed:
		return nil, errRefused
	}
	t.makeRoom(now)
	return t.open(k, now)
}

// errRefused says that a session was refused, and that it was counted.
var errRefused = errors.New("echo session refused")

func (t *Table) open(k key, now time.Time) (*session, error) {
	if t.cfg.Guard.Source(k.from) != "" {
		t.cfg.Flows.Counters.Inc(flow.DropSpoofed)
		return nil, errRefused
	}
	f := t.cfg.Flows.Admit(flow.Key{Proto: flow.Echo, Initiating: netip.AddrPortFrom(k.from, k.id)})
	if f == nil {
		return nil, errRefused
	}
	sock, err := hostsock.OpenPing(t.outbound(k.from))
	if err != nil {
		t.cfg.Flows.Release(f)
		return nil, t.unavailable(err)
	}
	s := &session{t: t, key: k, flow: f, sock: sock, used: now}
	s.peers.Max = maxTargets
	if err := t.poller.Add(sock, s); err != nil {
		t.end(s)
		return nil, t.unavailable(err)
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.sessions[k] = s
	}
	t.mu.Unlock()
	if closed {
		t.end(s)
		return nil, errRefused
	}
	return s, nil
}

func (t *Table) outbound(a netip.Addr) netip.Addr {
	addr, any := t.cfg.Outbound4, netip.IPv4Unspecified()
	if a.Is6() {
		addr, any = t.cfg.Outbound6, netip.IPv6Unspecified()
	}
	if addr.IsValid() {
		return addr
	}
	return any
}

// unavailable counts that a socket could not be had, and says once what to do
// about it if the sysctl is the reason.
func (t *Table) unavailable(err error) error {
	t.cfg.Flows.Counters.Inc(flow.EchoUnavailable)
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		t.explain.Do(func() {
			t.cfg.Logger.Warn(`ping to the outside is not available; as root: sysctl -w net.ipv4.ping_group_range="0 2147483647"`,
				slog.Any("error", err))
		})
		// For the container that is no answer about its destination.
		return errRefused
	}
	return err
}

// sending notes a request that is about to be sent.
func (s *session) sending(r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers.Add(r.To)
	s.last.to, s.last.seq = r.To, r.Seq
	s.last.quote = append(s.last.quote[:0], r.Quote[:min(len(r.Quote), maxQuote)]...)
}

func (s *session) asked(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers.Has(a)
}

// Receive hands a reply to the container.
func (s *session) Receive(m hostsock.Message) {
	from := m.From.Addr()
	e, ok := icmp.ParseEcho(from.Is6(), m.Payload)
	if !ok || !e.Reply || !s.asked(from) {
		return
	}
	s.flow.BytesIn.Add(uint64(len(e.Payload)))
	s.t.cfg.Sender.SendEchoReply(from, s.key.from, s.key.id, e.Seq, e.Payload)
}

// Report tells the container what became of a request. The report's payload is
// the request as it went out, with the socket's identifier.
func (s *session) Report(r hostsock.Report) {
	target := r.Target.Addr()
	e, ok := icmp.ParseEcho(target.Is6(), r.Payload)
	if r.Kind == 0 || !ok || !s.asked(target) {
		return
	}
	quote := s.quote(target, e)
	reporter := hosterr.Reporter(r.Kind, r.Offender, target, s.t.cfg.Guard.Plan)
	s.t.cfg.Sender.SendError(r.Kind, r.MTU, reporter, s.key.from, quote)
}

// quote returns the head of the request that e is left of: as it was received,
// if that was the last one, otherwise made up with the container's identifier.
func (s *session) quote(target netip.Addr, e icmp.Echo) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.to == target && s.last.seq == e.Seq && len(s.last.quote) > 0 {
		return append([]byte(nil), s.last.quote...)
	}
	e.ID, e.Payload = s.key.id, e.Payload[:min(len(e.Payload), maxQuote)]
	return icmp.AppendEcho(nil, e, s.key.from, target)
}
