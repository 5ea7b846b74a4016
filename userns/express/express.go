package express

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
)

// ErrUnavailable is wrapped when the kernel or the namespace lacks what the express
// path needs. Everything then goes the universal way.
var ErrUnavailable = errors.New("not available here")

// Config says for whose flows the path is.
type Config struct {
	// Interface is the container's interface, which must be up.
	Interface string
	// V4 and V6 are its addresses; invalid: that family stays on the universal path.
	V4, V6 netip.Addr
	// UDP includes UDP.
	UDP bool
}

// Path is the express path as installed. Its methods must not be called at the same
// time, AwaitNested excepted. The sockets are nonblocking, not watched by our own runtime, and stay the
// Path's; whoever serves them gets duplicates.
type Path struct {
	// Diag is a sock_diag socket (sock_diag(7)).
	Diag *os.File
	// TCP4 and TCP6 are transparent listeners; nil where a family is off.
	TCP4, TCP6 *os.File
	// UDP4 and UDP6 get datagrams that no connected socket takes, with their
	// destination as a control message (IP_ORIGDSTADDR, ip(7)). One that somebody in
	// there sends to the socket itself has the socket's own address for that. Nil
	// where a family or UDP is off.
	UDP4, UDP6 *os.File
	// Notice is a line for the user when something wanted is left out, else empty.
	Notice string

	iface       string
	route, nft  *os.File
	links       *os.File // AwaitNested's, over rtnetlink
	nested      bool     // what Nest does has been done
	families    []family
	claimed     bool // putUp has got as far as to change something
	acceptLocal bool // accept_local as it was
	congestion  setting
	lowPorts    setting
}

// unavailable is a refusal.
type unavailable struct{ err error }

func (e *unavailable) Error() string        { return "express path: " + e.err.Error() }
func (e *unavailable) Unwrap() error        { return e.err }
func (e *unavailable) Is(target error) bool { return target == ErrUnavailable }

// Install sets the path up in the target. What is left of an earlier one whose owner is
// gone is replaced; while that owner lives, the kernel refuses (EPERM). A family that
// alone cannot be served is left out, with a Notice. If nothing can, the error wraps
// ErrUnavailable and says what is missing; it does not where we could not enter the
// namespace at all. After an error nothing is left behind.
func Install(t *join.Target, cfg Config) (*Path, error) {
	p := &Path{iface: cfg.Interface}
	err := p.install(t, cfg)
	if err == nil {
		return p, nil
	}
	if cerr := p.Close(); cerr != nil {
		err = fmt.Errorf("%w; %w", err, cerr)
	}
	if errors.Is(err, join.ErrNoSocket) || rtnl.Refused(err) || errors.Is(err, errNothing) {
		return nil, &unavailable{err}
	}
	return nil, fmt.Errorf("express path: %w", err)
}

// errNothing is about a Config of which nothing is left.
var errNothing = errors.New("no address family to serve")

func (p *Path) install(t *join.Target, cfg Config) error {
	wanted, err := p.open(t, cfg)
	if err != nil {
		return err
	}
	if err := rtnl.Up(p.route, "lo"); err != nil { // sockets are bound to its addresses
		return err
	}
	for _, w := range wanted {
		f, err := w.prepare(p)
		if err != nil {
			p.leaveOut(w.number, err)
			continue
		}
		p.families = append(p.families, f)
	}
	if p.has(unix.AF_INET) {
		if p.acceptLocal, err = rtnl.AcceptLocal(p.route, p.iface); err != nil {
			return err
		}
	}
	for {
		failed, err := p.putUp()
		if err == nil || failed == 0 || len(p.families) <= 1 || !rtnl.Refused(err) {
			return err
		}
		p.leaveOut(failed, err)
	}
}

// putUp puts up all but the sockets. If only one family is to blame for the error, it
// says which.
func (p *Path) putUp() (failed uint8, err error) {
	if len(p.families) == 0 {
		return 0, fmt.Errorf("%w (%s)", errNothing, p.Notice)
	}
	// The table is first: while another path lives here, it is what we are refused, and
	// then nothing of that one's must be touched.
	err = install(p.nft, p.plan())
	if refusedOp(err) == opAny && errors.Is(err, unix.EPERM) {
		return 0, fmt.Errorf("another process has one in the same network: end that first: %w", err)
	}
	for _, f := range p.families {
		if refusedOp(err) == tproxyOp(f.number) {
			return f.number, err
		}
	}
	if err != nil {
		return 0, err
	}
	p.claimed = true
	for _, f := range p.families {
		if err := rtnl.InstallExpress(p.route, f.number); err != nil {
			return f.number, err
		}
	}
	if p.nested {
		if err := rtnl.InstallNested(p.route); err != nil {
			return 0, err
		}
	}
	if p.has(unix.AF_INET) {
		if err := rtnl.SetAcceptLocal(p.route, p.iface, true); err != nil {
			return unix.AF_INET, err
		}
	}
	p.congestion.change(congestion)
	if p.UDP4 != nil || p.UDP6 != nil {
		p.lowPorts.change(lowPorts)
	}
	return 0, nil
}

// Repair puts back what somebody has removed or changed; the sockets stay, and whoever
// has duplicates of them need not be told. It does no harm where nothing is amiss.
func (p *Path) Repair() error {
	if p.nft == nil {
		return fmt.Errorf("express path: %w", os.ErrClosed)
	}
	for _, f := range []*os.File{p.TCP4, p.TCP6} {
		if err := revive(f); err != nil {
			return fmt.Errorf("express path: put a listener back: %w", err)
		}
	}
	if _, err := p.putUp(); err != nil {
		return fmt.Errorf("express path: put it back: %w", err)
	}
	return nil
}

// Close takes everything away and closes the sockets. Flows that are on the path then
// end with resets.
func (p *Path) Close() error {
	if p.nft == nil {
		return nil
	}
	var errs []error
	if p.claimed {
		errs = p.takeAway()
	}
	p.Abandon()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("express path: take it away: %w", err)
		}
	}
	return nil
}

// takeAway undoes putUp.
func (p *Path) takeAway() []error {
	errs := []error{remove(p.nft), rtnl.RemoveExpress(p.route, p.numbers()...), rtnl.RemoveNested(p.route)}
	if p.has(unix.AF_INET) && !p.acceptLocal {
		err := rtnl.SetAcceptLocal(p.route, p.iface, false)
		if !errors.Is(err, unix.ENODEV) { // the interface may be gone by now
			errs = append(errs, err)
		}
	}
	return append(errs, p.congestion.restore(congestion), p.lowPorts.restore(lowPorts))
}

// Abandon only closes the sockets: for a namespace that ends with us anyway. The kernel
// takes the table away with them; rules and routes that lead nowhere stay.
func (p *Path) Abandon() error {
	for _, f := range []**os.File{&p.Diag, &p.TCP4, &p.TCP6, &p.UDP4, &p.UDP6, &p.route, &p.nft, &p.links, &p.congestion.file, &p.lowPorts.file} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	return nil
}

func (p *Path) plan() plan { return plan{p.iface, p.families, p.nested} }

func (p *Path) numbers() []uint8 {
	var list []uint8
	for _, f := range p.families {
		list = append(list, f.number)
	}
	return list
}

func (p *Path) has(number uint8) bool {
	for _, f := range p.families {
		if f.number == number {
			return true
		}
	}
	return false
}

// leaveOut goes on without a family.
func (p *Path) leaveOut(number uint8, why error) {
	name, sockets := "IPv4", []**os.File{&p.TCP4, &p.UDP4}
	if number == unix.AF_INET6 {
		name, sockets = "IPv6", []**os.File{&p.TCP6, &p.UDP6}
	}
	for _, f := range sockets {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	var rest []family
	for _, f := range p.families {
		if f.number != number {
			rest = append(rest, f)
		}
	}
	p.families = rest
	p.notice("%s goes the universal way: %v", name, why)
}

func (p *Path) notice(format string, args ...any) {
	p.Notice = strings.TrimPrefix(p.Notice+"; "+fmt.Sprintf(format, args...), "; ")
}
