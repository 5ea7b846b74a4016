package supervisor

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/express"
	"github.com/postern-net/postern/userns/join"
)

// TCPPath is the user's choice of how TCP leaves the container.
type TCPPath string

// The choices.
const (
	// TCPAuto is express where the kernel offers it, otherwise netstack.
	TCPAuto    TCPPath = "auto"
	TCPExpress TCPPath = "express"
	// TCPNetstack is netstack for everything.
	TCPNetstack TCPPath = "netstack"
)

// repairEvery is how often the express path is put back at most, because somebody
// may be taking it away as often.
const repairEvery = 5 * time.Second

// expressway is what the express path has in the container's network namespace. It
// outlives engines: each gets duplicates of its sockets.
type expressway struct {
	path     *express.Path // nil without
	keep     bool          // the namespace is ours and ends with us
	nested   *nestWatch    // nil once it has found something
	repaired time.Time
}

// openExpress sets the express path up, unless the user does not want it. Without it
// everything works too, so only who asked for it by name is refused.
func (n *network) openExpress() error {
	if n.cfg.TCP == tcpNone {
		return nil
	}
	way := apisock.TCP{Path: string(TCPNetstack), Why: "--tcp=netstack"}
	if n.cfg.TCP != TCPNetstack {
		path, err := n.installExpress()
		switch {
		case err == nil:
			n.express.path = path
			if n.express.nested, err = watchNested(path, n.log); err != nil {
				return fmt.Errorf("wait for nested networks: %w", err)
			}
			way = apisock.TCP{Path: string(TCPExpress), Why: path.Notice}
		case n.cfg.TCP == TCPExpress:
			return fmt.Errorf("--tcp=express: %w", err)
		default:
			way.Why = err.Error()
			n.log.Info("TCP goes through netstack", "cause", err)
		}
	}
	n.mu.Lock()
	n.public.tcp = way
	n.mu.Unlock()
	return nil
}

func (n *network) installExpress() (*express.Path, error) {
	if n.target == nil {
		return nil, errNoNetNS
	}
	p := n.cfg.Plan
	return express.Install(n.target, express.Config{
		Interface: n.cfg.IfName, V4: p.V4.Container, V6: p.V6.Container, UDP: true,
	})
}

// handed is what an engine gets; owned is the caller's to close.
type handed struct {
	all   []*os.File
	owned *os.File
}

// hand returns what goes to an engine with its configuration.
func (w *expressway) hand(s *supply, t *join.Target) (has handoff.Express, files handed, err error) {
	p := w.path
	if p == nil {
		return has, files, nil
	}
	has = handoff.Express{TCP4: p.TCP4 != nil, TCP6: p.TCP6 != nil, UDP4: p.UDP4 != nil, UDP6: p.UDP6 != nil}
	files.all = []*os.File{p.Diag}
	for _, f := range []*os.File{p.TCP4, p.TCP6, p.UDP4, p.UDP6} {
		if f != nil {
			files.all = append(files.all, f)
		}
	}
	if has.UDP4 || has.UDP6 {
		if files.owned, err = s.connect(t); err != nil {
			return handoff.Express{}, handed{}, err
		}
		files.all = append(files.all, files.owned)
	}
	return has, files, nil
}

// repairExpress puts back what an engine misses.
func (n *network) repairExpress() {
	if time.Since(n.express.repaired) < repairEvery {
		return
	}
	n.log.Warn("the container's kernel does not hand connections over any more; setting the express path up again")
	n.express.repair(n.log)
}

func (w *expressway) repair(log *slog.Logger) {
	if w.path == nil {
		return
	}
	w.repaired = time.Now()
	if err := w.path.Repair(); err != nil {
		log.Warn("the express path cannot be put back; TCP goes through netstack", "cause", err)
	}
}

// close takes the express path away, as far as somebody stays to notice.
func (w *expressway) close(log *slog.Logger) {
	if w.path == nil {
		return
	}
	w.nested.close()
	end := w.path.Close
	if w.keep {
		end = w.path.Abandon
	}
	if err := end(); err != nil {
		log.Warn("something of the express path is left in the container's network", "cause", err)
	}
	w.path = nil
}
