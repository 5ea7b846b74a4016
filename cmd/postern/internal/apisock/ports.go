package apisock

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"

	"github.com/postern-net/postern/portdriver"
	wire "github.com/postern-net/postern/proto/api"
)

// Ports publishes ports. Its methods are called from several goroutines.
type Ports interface {
	// Driver names the driver that takes TCP to the container. Docker asks once, when
	// it starts, and takes "none" and "implicit" for no driver at all.
	Driver() string
	// Add puts all specs in force, or none, and returns their rules in the same
	// order. Errors wrap portdriver's and the context's.
	Add(context.Context, []portdriver.Spec) ([]portdriver.Rule, error)
	// Remove ends a rule. It wraps portdriver.ErrNotFound if there is none.
	Remove(ctx context.Context, id int) error
	// Rules returns the rules in force, by ID.
	Rules() []portdriver.Rule
}

// netstackDriver is the driver that cannot reach the container's loopback.
const netstackDriver = "netstack"

// driverInfo is a driver in RootlessKit's words.
//
// DisallowLoopbackChildIP decides where Docker's proxy listens, what childIP it asks
// for, and which address nerdctl's DNAT rules are for: the container's loopback, or if
// that is disallowed the container's own address.
//
// A socket that splice makes follows DNAT on either address (userns/express), so the
// rules decide. nerdctl's (CNI portmap) take both, and a server behind its bridge sees
// the client. Docker's spare the loopback: there its proxy accepts, and the server sees
// the bridge's address. On the container's address they would pass the client through,
// but Docker starts a proxy for 0.0.0.0 and one for [::], and both would listen on the
// one address that may be named here: the second fails, and the container with it. So
// it is the loopback, as with RootlessKit's own driver.
//
// Clients of netstack come in through the container's interface: they cannot reach the
// loopback, and DNAT suits them.
func driverInfo(driver string) *api.PortDriverInfo {
	info := &api.PortDriverInfo{Driver: driver, DisallowLoopbackChildIP: driver == netstackDriver}
	// All of them: clients add a digit to what their user said and give up if the
	// result is not listed.
	for _, p := range portdriver.Protos {
		info.Protos = append(info.Protos, string(p))
	}
	return info
}

// errNoDriver begins as RootlessKit's does.
var errNoDriver = errors.New("no PortDriver is available (the instance runs with --port-driver=none)")

// published wraps the handlers that need a port driver.
func (rt *routes) published(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if rt.ports == nil {
			fail(w, http.StatusBadRequest, errNoDriver)
			return
		}
		handle(w, r)
	}
}

// listAll is GET /v1/postern/ports.
func (rt *routes) listAll(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, describe(rt.ports.Rules()))
}

// addAll is POST /v1/postern/ports.
func (rt *routes) addAll(w http.ResponseWriter, r *http.Request) {
	var request wire.AddPorts
	err := wire.Decode(r.Body, wire.MaxAddPorts, &request)
	var texts []string
	if err == nil {
		texts, err = request.All()
	}
	var specs []portdriver.Spec
	for _, text := range texts {
		spec, parseErr := portdriver.ParseSpec(text)
		if err = parseErr; err != nil {
			break
		}
		specs = append(specs, spec)
	}
	var rules []portdriver.Rule
	if err == nil {
		rules, err = rt.change(w, r, specs)
	}
	if err != nil {
		fail(w, statusOf(err), err)
		return
	}
	write(w, http.StatusCreated, describe(rules))
}

// change adds rules in the time that changes may take.
func (rt *routes) change(w http.ResponseWriter, r *http.Request, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	ctx, cancel := patient(w, r)
	defer cancel()
	rules, err := rt.ports.Add(ctx, specs)
	if err == nil && len(rules) != len(specs) {
		err = fmt.Errorf("publish %d ports: got %d rules", len(specs), len(rules))
	}
	return rules, err
}

// remove is DELETE of a rule.
func (rt *routes) remove(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("remove port %.32q: want the number of a rule", r.PathValue("id")))
		return
	}
	ctx, cancel := patient(w, r)
	defer cancel()
	if err := rt.ports.Remove(ctx, id); err != nil {
		fail(w, statusOf(err), err)
	}
}

// patient gives a request that changes rules the time it needs. The server's own
// timeouts, which are for clients that keep it waiting, have run since the request
// began: that for reading ends the request's context, too.
func patient(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	deadline := time.Now().Add(changeTimeout)
	c := http.NewResponseController(w)
	// A connection on which this fails is gone, which the answer will notice.
	_ = c.SetReadDeadline(deadline.Add(answerTimeout))
	_ = c.SetWriteDeadline(deadline.Add(answerTimeout))
	return context.WithDeadline(r.Context(), deadline)
}

// statusOf returns the HTTP status for an error.
func statusOf(err error) int {
	switch {
	case errors.Is(err, portdriver.ErrConflict), errors.Is(err, syscall.EADDRINUSE):
		return http.StatusConflict
	case errors.Is(err, portdriver.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, portdriver.ErrLimit):
		return http.StatusTooManyRequests
	case errors.Is(err, wire.ErrTooLong):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, portdriver.ErrClosed), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// describe puts rules in the words of our part of the API.
func describe(rules []portdriver.Rule) []wire.Port {
	ports := make([]wire.Port, 0, len(rules)) // [] and not null
	for _, r := range rules {
		p := wire.Port{
			ID: r.ID, Spec: r.Spec.String(), Proto: string(r.Spec.Proto), Count: r.Spec.Count,
			Bound: make([]netip.AddrPort, 0, len(r.Listeners)), HostPath: r.Spec.Host.Path,
			ContainerAddr: r.Spec.Container.Addr, ContainerPort: r.Spec.Container.Port, ContainerPath: r.Spec.Container.Path,
			Auto: r.Auto, Reverse: r.Spec.Reverse, Proxy: r.Spec.Proxy,
		}
		for _, l := range r.Listeners {
			if l.Bound.IsValid() { // a unix socket has a path instead
				p.Bound = append(p.Bound, l.Bound)
			}
		}
		ports = append(ports, p)
	}
	return ports
}
