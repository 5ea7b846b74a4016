package rootlesskit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/kernudp"
	"github.com/postern-net/postern/portdriver/splice"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/userns/join"
)

// engine serves rules in this process. It is the registry's backend.
type engine struct {
	loops  *relay.Loops
	supply *supply
	tcp    *splice.Driver
	udp    *kernudp.Driver
}

// maxLoops is how many threads relay; one moves some 20 Gbit/s.
const maxLoops = 2

func newEngine(target *join.Target, a portdriver.Addresses, maxFlows int, log *slog.Logger) (e *engine, err error) {
	e = &engine{}
	defer func() {
		if err != nil {
			e.close()
			err = fmt.Errorf("publish ports: %w", err)
		}
	}()
	if err = target.PreparePublishing(); err != nil {
		return e, err
	}
	if e.supply, err = newSupply(target, log); err != nil {
		return e, err
	}
	if e.loops, err = relay.NewLoops(min(maxLoops, runtime.GOMAXPROCS(0))); err != nil {
		return e, err
	}
	if e.tcp, err = splice.New(splice.Config{
		Addresses: a, Loops: e.loops, Stock: e.supply.stock, MaxFlows: maxFlows, Grace: grace, Logger: log,
	}); err != nil {
		return e, err
	}
	e.udp, err = kernudp.New(kernudp.Config{Stock: e.supply.stock, Routes: datagramRoutes, Logger: log})
	return e, err
}

// Open implements portdriver.Backend. The registry keeps its own descriptors.
func (e *engine) Open(r portdriver.Rule) error {
	var failed error
	for _, l := range r.Listeners {
		fd, err := unix.FcntlInt(l.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return errors.Join(failed, fmt.Errorf("serve %s %s: %w", l.Network, l.Bound, err))
		}
		l.File = os.NewFile(uintptr(fd), l.File.Name())
		driver := portdriver.Driver(e.tcp)
		if l.Network == portdriver.NetUDP {
			driver = e.udp
		}
		failed = errors.Join(failed, driver.Open(l))
	}
	return failed
}

// Shut implements portdriver.Backend.
func (e *engine) Shut(rule int) {
	e.tcp.Shut(rule)
	e.udp.Shut(rule)
}

// close ends every flow, then what flows need.
func (e *engine) close() {
	if e.tcp != nil {
		e.tcp.Close()
	}
	if e.udp != nil {
		e.udp.Close()
	}
	if e.loops != nil {
		e.loops.Close()
	}
	if e.supply != nil {
		e.supply.close()
	}
}
