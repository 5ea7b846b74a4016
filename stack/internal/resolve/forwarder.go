package resolve

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/stack/internal/flow"
)

const (
	// ownZone is answered here whatever the host's servers say: a name in it is
	// never forwarded, so no outside server can answer for it.
	ownZone = "postern.internal."
	// ownTTL is how long clients may keep an own name, in seconds. The addresses
	// never change while the engine lives.
	ownTTL = 60
	// maxQuery bounds the memory of queries, in bytes. A question takes at most
	// 271; the rest leaves room for padding (RFC 8467) and signatures.
	maxQuery = 16 << 10
)

// Exchange asks one server and returns the first response that matches the
// query (dns.Matches), a slice that the caller owns. network is "udp" or "tcp".
// It returns soon after ctx ends.
type Exchange func(ctx context.Context, network string, server netip.AddrPort, query []byte) ([]byte, error)

// Config is what a Forwarder is made from. It must not be changed after New.
type Config struct {
	// Upstreams are the host's name servers in order; see SetUpstreams.
	Upstreams []netip.AddrPort
	// Local gives the addresses of the engine's own names, which are lower case
	// and end in a dot; ok is false for other names. Nil means that there are none.
	Local func(name string) (addrs []netip.Addr, ok bool)
	// Counters are counted into; nil means that nobody reads them.
	Counters *flow.Counters
	// Logger gets changes of the servers; nil means none.
	Logger *slog.Logger
	// Exchange replaces the exchange over sockets in tests.
	Exchange Exchange
	// Stagger is how long a server may be silent before the next one is asked
	// too; 0 means 400 ms, above the round trip to most resolvers, and low
	// enough that a dead one is hardly noticed.
	Stagger time.Duration
	// TryTimeout ends one try at one server; 0 means 2 s.
	TryTimeout time.Duration
	// TotalTimeout ends a lookup; 0 means 5 s, which is when the resolver of
	// glibc gives up on us (resolv.conf(5), RES_TIMEOUT).
	TotalTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.Local == nil {
		c.Local = func(string) ([]netip.Addr, bool) { return nil, false }
	}
	if c.Counters == nil {
		c.Counters = new(flow.Counters)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Exchange == nil {
		c.Exchange = exchange
	}
	orDefault(&c.Stagger, 400*time.Millisecond)
	orDefault(&c.TryTimeout, 2*time.Second)
	orDefault(&c.TotalTimeout, 5*time.Second)
	return c
}

func orDefault(d *time.Duration, def time.Duration) {
	if *d == 0 {
		*d = def
	}
}

// Forwarder answers queries. It is safe for concurrent use. It starts one
// goroutine a query and one a try; Close stops them and waits for them.
type Forwarder struct {
	cfg       Config
	upstreams upstreams
	slots     chan struct{} // one element a query under way, at most flow.MaxDNS
	conns     chan struct{} // one element an open stream, at most flow.MaxDNSConns

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu     sync.Mutex     // guards closed, and Add of wg against its Wait
	closed bool           // nothing new begins
	wg     sync.WaitGroup // queries and streams
}

// New returns a forwarder that asks c.Upstreams.
func New(c Config) *Forwarder {
	c = c.withDefaults()
	f := &Forwarder{
		cfg:   c,
		slots: make(chan struct{}, flow.MaxDNS),
		conns: make(chan struct{}, flow.MaxDNSConns),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.upstreams.set(c.Upstreams)
	return f
}

// SetUpstreams replaces the servers, in order of preference. IPv4-mapped
// addresses are unmapped; duplicates, invalid addresses and what exceeds
// dns.MaxNameservers are left out. Lookups under way ask the new servers at
// once. With no servers queries get SERVFAIL. Setting the same list changes nothing.
func (f *Forwarder) SetUpstreams(servers []netip.AddrPort) {
	if !f.upstreams.set(servers) {
		return
	}
	if len(servers) == 0 {
		f.cfg.Logger.Warn("the host has no name servers; names do not resolve until it has")
		return
	}
	f.cfg.Logger.Info("name servers changed", "servers", slices.Clone(servers))
}

// Close ends all lookups and streams and waits until their goroutines have
// ended. Queries under way get no reply. It must not be called from a reply.
// Closing twice is harmless.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
	return nil
}

// begin enters a query or stream into wg, unless the forwarder is closed.
func (f *Forwarder) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.wg.Add(1)
	return true
}

// Query answers a query that came as a datagram. It copies msg and returns at
// once. reply is called at most once, from another goroutine, with a message
// that it may keep, no longer than the client takes; it must not block. With
// flow.MaxDNS queries under way the query is dropped and counted: the client's
// own retry is the way to wait.
func (f *Forwarder) Query(msg []byte, reply func([]byte)) {
	select {
	case f.slots <- struct{}{}:
	default:
		f.cfg.Counters.Inc(flow.DNSRefusedLimit)
		return
	}
	if !f.begin() {
		<-f.slots
		return
	}
	if len(msg) > maxQuery {
		msg = msg[:dns.HeaderLen] // what is left is answered with FORMERR
	}
	go f.serveUDP(slices.Clone(msg), reply)
}

func (f *Forwarder) serveUDP(msg []byte, reply func([]byte)) {
	defer f.wg.Done()
	defer func() { <-f.slots }()
	if response := f.answer(f.ctx, "udp", msg); response != nil {
		reply(response)
	}
}

// answer returns the response to msg, or nil if there must be none.
func (f *Forwarder) answer(ctx context.Context, network string, msg []byte) []byte {
	f.cfg.Counters.Inc(flow.DNSQueries)
	q, err := dns.ParseQuery(msg)
	if refused := (*dns.RefusedError)(nil); errors.As(err, &refused) {
		if refused.Rcode == dns.NoResponse {
			return nil
		}
		return dns.Error(msg, refused.Rcode)
	}
	if response := f.own(q, msg); response != nil {
		return response
	}
	response := f.lookUp(ctx, network, msg)
	switch {
	case ctx.Err() != nil:
		return nil
	case response == nil:
		f.cfg.Counters.Inc(flow.DNSUpstreamFailed)
		return dns.Error(msg, dns.RcodeServFail)
	}
	dns.SetID(response, q.ID)
	if network == "udp" && len(response) > q.MaxUDP() {
		return dns.Truncate(msg, response)
	}
	return response
}

// own answers what must not be forwarded, and returns nil for the rest. A zone
// transfer may be many messages (RFC 5936), which a forwarder of single messages
// would cut off.
func (f *Forwarder) own(q dns.Query, msg []byte) []byte {
	if addrs, ok := f.cfg.Local(q.Name); ok {
		return dns.AnswerAddrs(msg, addrs, ownTTL)
	}
	if q.Name == ownZone || strings.HasSuffix(q.Name, "."+ownZone) {
		return dns.NXDomain(msg)
	}
	if q.Type == dns.TypeAXFR || q.Type == dns.TypeIXFR {
		return dns.Error(msg, dns.RcodeRefused)
	}
	return nil
}
