package express

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/internal/refusal"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

const (
	// maxSYN is the longest SYN that is kept: both headers with all options are 100
	// bytes. Longer ones carry data (RFC 7413) and go the universal way.
	maxSYN = 128

	// checkEvery is how often a client is looked for while its dial hangs. Its own
	// kernel tries for two minutes (tcp(7), tcp_syn_retries), programs give up after
	// some seconds.
	checkEvery = 3 * time.Second

	// pairTimeout is how long an answer to a SYN that was written back is waited for.
	// It comes within the call; a client on the universal path has to wait no longer
	// for its name server.
	pairTimeout = 200 * time.Millisecond

	// maxFailures is how many connections in a row may have no answer before the path
	// is given up for firstPause, the second time for twice as long, up to longestPause.
	maxFailures  = 3
	firstPause   = 10 * time.Second
	longestPause = 5 * time.Minute

	// acceptBudget is how many connections a listener may accept before the flows of
	// its loop have their turn.
	acceptBudget = 64

	// slack is how many more flows the loop of a connection's listener may have than
	// another one: waking another thread costs more than half of a short connection,
	// and pays only for flows that stay.
	slack = 4
)

// Sender is how an Out speaks to the container and to netstack; it is the link.
type Sender interface {
	refusal.Sender
	SendReset(syn link.Packet)
	Reinject(p link.Packet) error
	Resubmit(syn link.Packet)
}

// Config describes an Out.
type Config struct {
	// Loops must outlive the Out.
	Loops *relay.Loops
	// TCP4 and TCP6 are transparent listeners of the container's netns, at least one.
	// New takes them over, also when it fails.
	TCP4, TCP6 *os.File
	// Diag was made there too. It must outlive the Out.
	Diag   *Diag
	Flows  *flow.Table
	Sender Sender
	// Plan has the container's addresses: only sockets with these go this way.
	Plan netplan.Plan
	// Outbound4 and Outbound6 are the host's addresses that sockets use; the zero value
	// leaves the choice to the host's routes.
	Outbound4, Outbound6 netip.Addr
	// MaxFlows is how many flows there may be; 0 derives it from RLIMIT_NOFILE.
	MaxFlows int
	// Lost, if not nil, is called whenever the path is given up for a while. It must
	// not block.
	Lost func()
	// Logger may be nil.
	Logger *slog.Logger
}

// New starts the express path.
func New(cfg Config) (*Out, error) {
	defer closeFiles(cfg.TCP4, cfg.TCP6)
	if cfg.Diag == nil || cfg.TCP4 == nil && cfg.TCP6 == nil {
		return nil, errors.New("start express: needs a sock_diag socket and a listener")
	}
	return newOut(cfg, cfg.Diag)
}

// newOut is New with any lookup.
func newOut(cfg Config, diag lookup) (*Out, error) {
	o := &Out{
		cfg: cfg, diag: diag, most: cfg.MaxFlows, every: checkEvery, patience: pairTimeout, conns: make(map[flow.Key]*conn),
	}
	o.idle.L = &o.mu
	o.tell = refusal.Teller{Counters: &cfg.Flows.Counters, Sender: cfg.Sender, Plan: cfg.Plan}
	if o.cfg.Logger == nil {
		o.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if o.most <= 0 {
		o.most = capacity(sockcall.OpenFiles())
	}
	loops := cfg.Loops.All()
	for i, f := range [...]*os.File{cfg.TCP4, cfg.TCP6} {
		if f == nil {
			continue
		}
		h, err := o.serve(f, loops[i%len(loops)])
		if err != nil {
			o.Close()
			return nil, fmt.Errorf("start express: %w", err)
		}
		o.homes[i] = h
	}
	return o, nil
}

// capacity is how many flows half of a process's descriptors allow, two for each. The
// other half is for the universal path, published ports and pipes.
func capacity(limit uint64) int { return int(max(1, min(limit/4, flow.MaxTCP))) }

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
