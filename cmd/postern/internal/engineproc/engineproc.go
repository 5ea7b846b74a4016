// Package engineproc is the process that moves packets.
//
// It starts with four descriptors: the null device twice, the log, and the
// control socket. Before it reads a byte it gives up whatever it can do that
// moving packets does not need (below). Then it receives its configuration
// with the endpoint's descriptor, runs the engine of package stack, answers
// requests, and ends when the control socket does: nobody else could use it.
//
// # Confinement
//
// Whoever takes the engine over by a packet shall find nothing to go on with. On
// every thread, always, and without any privilege to begin with:
//
//   - No descriptor is open that it was not meant to have (strays.go).
//   - No capability in any set, no new privileges through execve, no core dump, and
//     no look into its memory or descriptors by others of the same user (caps.go).
//   - Landlock bars all files that are not open: reading, writing, listing,
//     executing and making them, and renaming, truncating and device ioctls as
//     the kernel's version goes (landlock.go). It bars abstract unix sockets of
//     others, and signals to others. TCP stays free; package guard decides there.
//   - A filter lets only the system calls through that Go and our packages use
//     (calls.go), some with certain arguments only (seccomp.go): sockets of TCP,
//     UDP and ping, and route netlink; threads, but no processes; signals
//     to itself; no new executable memory. A call that only an intruder makes (to
//     run a program, to trace, to enter a namespace, to mount ...) kills the
//     engine, and the supervisor starts another. Files are refused with EACCES, every
//     other call with ENOSYS, which is what Go's runtime and libraries are
//     prepared for.
//
// A kernel without Landlock or filters is served without them, said in the log at
// level info; a step that the kernel has and that fails ends the engine.
//
// Unix sockets that ports are published to are connected to by the supervisor, which
// looks whether there is such a rule (unixdial.go). The root directory is the
// host's: an empty one keeps nothing away that the above does not.
//
// A process that fails in the middle of a packet ends; it does not try to go on
// (no recover). The supervisor holds the endpoint open and starts another.
//
// Memory: the live heap at rest is a few MiB, of which most is gVisor's tables.
// The collector runs when the heap has grown by half (gcPercent) instead of
// double, which costs about a percent of the processor at full speed because
// payloads live in pooled buffers, and what start-up needed is given back once.
package engineproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/tap"
	"github.com/postern-net/postern/userns/seam"
)

// Name is the engine's argv[0].
const Name = "postern-engine"

// exitFailed is the exit code after a failure; the supervisor reports the cause.
const exitFailed = 125

// gcPercent is the collector's target; see the package comment.
const gcPercent = 50

// settleAfter is when the memory that start-up needed is given back: late enough
// not to get in the way of the first packets.
const settleAfter = time.Second

// processors is how many processors' worth of Go code the engine runs at once on
// a machine with n: half of them, because the container and the host's kernel do
// the other half of the work, but two if there are two. With one, whatever else
// is due waits for a packet under way: 114 instead of 96 µs for a round trip on
// two processors, with the same figures in bulk.
func processors(n int) int { return max(min(n, 2), n/2) }

// Main runs the engine process and returns its exit code.
func Main() int {
	closeStrays()
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(processors(runtime.NumCPU()))
	// The log's reader may go away; that must not end the network. Signals are
	// the supervisor's business, which we outlive by no means.
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	missing, confineErr := confine() // may execute this program again, so it comes first
	conn, err := seam.Control()
	if err != nil {
		fmt.Fprintln(os.Stderr, "postern:", err)
		return exitFailed
	}
	defer conn.Close()
	if confineErr != nil {
		return fail(conn, confineErr, false)
	}
	cfg, files, err := receiveConfig(conn)
	if errors.Is(err, io.EOF) {
		return 0 // the supervisor gave up before it needed us
	}
	if err != nil {
		return fail(conn, err, false)
	}
	log := logger(cfg)
	for _, what := range missing {
		log.Info(what)
	}
	return serve(conn, cfg, files, log)
}

// fail tells the supervisor why we end.
func fail(conn *seam.Conn, err error, device bool) int {
	if sendErr := conn.Send(&handoff.EngineFailed{Reason: err.Error(), Device: device}); sendErr != nil {
		fmt.Fprintln(os.Stderr, "postern: engine:", err)
	}
	return exitFailed
}

// receiveConfig takes the first message and its descriptors.
func receiveConfig(conn *seam.Conn) (*handoff.EngineConfig, []*os.File, error) {
	m, files, err := conn.Recv()
	if err != nil {
		return nil, nil, err
	}
	cfg, ok := m.(*handoff.EngineConfig)
	if !ok || len(files) != 1+cfg.Express.Files() {
		seam.CloseAll(files)
		return nil, nil, fmt.Errorf("configure engine: got %T with %d descriptors", m, len(files))
	}
	return cfg, files, nil
}

// serve runs the engine until the supervisor is gone or the device has died.
func serve(conn *seam.Conn, cfg *handoff.EngineConfig, files []*os.File, log *slog.Logger) int {
	plan, err := planOf(cfg)
	if err != nil {
		seam.CloseAll(files)
		return fail(conn, err, false)
	}
	threads := &threads{}
	defer threads.close()
	express, err := newExpressway(conn, cfg.Express, files[1:], threads, log)
	if err != nil {
		seam.CloseAll(files)
		return fail(conn, err, false)
	}
	defer express.close()
	engine, device, err := build(cfg, plan, files[0], express, log)
	if err != nil {
		return fail(conn, err, false)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := handoff.EngineReady{Offloads: device.Offloads().String(), Notice: device.Notice()}
	if err := conn.Send(&ready); err != nil {
		return exitFailed
	}
	var requests sync.WaitGroup
	published := newPorts(conn, engine, plan, threads, log)
	requests.Go(func() {
		answer(conn, engine, published)
		published.unix.close()
		cancel() // the supervisor is gone
	})
	settled := time.AfterFunc(settleAfter, debug.FreeOSMemory)
	defer settled.Stop()
	if err := engine.Run(ctx); err != nil {
		return fail(conn, err, true)
	}
	_ = conn.Close()
	requests.Wait()
	published.close()
	return 0
}

// kinds says what each endpoint is for package tap.
var kinds = map[handoff.EndpointKind]tap.Kind{
	handoff.TAP: tap.TAP, handoff.Packet: tap.Packet, handoff.BareTAP: tap.BareTAP, handoff.Seqpacket: tap.Seqpacket,
}

// ethernetLen is the length of an Ethernet header without VLAN tag.
const ethernetLen = 14

// maxFrame is the longest frame of an endpoint that is taken, 0 for any. Behind the
// others a kernel stands, whose super-segments are longer than its MTU.
func maxFrame(cfg *handoff.EngineConfig) int {
	if cfg.Endpoint == handoff.Seqpacket {
		return ethernetLen + cfg.MTU
	}
	return 0
}

// build makes the engine from its configuration.
func build(cfg *handoff.EngineConfig, plan netplan.Plan, endpoint *os.File, express *expressway, log *slog.Logger) (*stack.Engine, *tap.Device, error) {
	device, err := tap.New(endpoint, kinds[cfg.Endpoint])
	if err != nil {
		express.discard()
		return nil, nil, err
	}
	engine, err := stack.New(stack.Config{
		Device:            device,
		MTU:               cfg.MTU,
		Static:            cfg.Static,
		Plan:              plan,
		ContainerMAC:      cfg.ContainerMAC,
		MaxFrame:          maxFrame(cfg),
		HostLoopback:      cfg.HostLoopback,
		HostLoopbackPorts: cfg.HostLoopbackPorts,
		Outbound4:         cfg.Outbound4,
		Outbound6:         cfg.Outbound6,
		Upstreams:         cfg.Upstreams,
		Search:            cfg.Search,
		NoDNS:             cfg.NoDNS,
		DHCPFirst:         cfg.DHCPFirst,
		DHCPLast:          cfg.DHCPLast,
		UDPIdle:           cfg.UDPIdle,
		UDPIdleUnreplied:  cfg.UDPIdleUnreplied,
		Express:           express.sockets,
		Logger:            log,
	})
	return engine, device, err
}

// planOf plans the networks again from their prefixes; the plan is a pure function.
func planOf(cfg *handoff.EngineConfig) (plan netplan.Plan, err error) {
	if cfg.Network4.IsValid() {
		if plan.V4, err = netplan.NewFamily(cfg.Network4); err != nil {
			return netplan.Plan{}, err
		}
	}
	if cfg.Network6.IsValid() {
		plan.V6, err = netplan.NewFamily(cfg.Network6)
	}
	return plan, err
}

func logger(cfg *handoff.EngineConfig) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.Level(cfg.LogLevel)}
	if cfg.LogJSON {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

// answer handles the supervisor's messages until it is gone.
func answer(conn *seam.Conn, engine *stack.Engine, published *ports) {
	for {
		m, files, err := conn.Recv()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *handoff.EngineStock:
			if err := published.stocked(m, files); err != nil {
				_ = fail(conn, err, false)
				return
			}
			continue
		case *handoff.EnginePorts:
			published.open(m, files)
			continue
		case *handoff.EngineDialed:
			published.unix.dialed(m, files)
			continue
		case *handoff.EngineShut:
			published.shut(m.Rule)
		case *handoff.EngineResolvers:
			engine.SetUpstreams(m.Upstreams)
			engine.SetSearch(m.Search)
		case *handoff.EngineSnapshotRequest:
			s := engine.Snapshot()
			// A supervisor that cannot be answered is gone; Recv finds out.
			out := handoff.EngineSnapshot{Seq: m.Seq, Counters: s.Counters, TCP: s.TCP, Express: s.Express, UDP: s.UDP, Echo: s.Echo}
			published.count(&out)
			_ = conn.Send(&out)
		}
		seam.CloseAll(files)
	}
}
