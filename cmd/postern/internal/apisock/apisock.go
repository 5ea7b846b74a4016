// Package apisock is an instance's control socket: HTTP/1.1 over a unix socket,
// as RootlessKit's clients expect it, plus our own questions below /v1/postern.
//
//	GET    /v1/info                what RootlessKit's API 1.1.3 tells
//	GET    /v1/ports               published ports in RootlessKit's words
//	POST   /v1/ports               publish one
//	DELETE /v1/ports/{id}          end a rule
//	GET    /v1/postern/status      counters, flows and engine of this instance
//	GET    /v1/postern/ports       every rule with all that is known of it
//	POST   /v1/postern/ports       put rules in force, all or none
//	DELETE /v1/postern/ports/{id}  end a rule
//
// RootlessKit's clients (rootlessctl, Docker, nerdctl) work unchanged. A parentIP
// that is left out means 127.0.0.1 and ::1, as everywhere in postern, and not every
// address of the host as in RootlessKit; a childIP that is left out means the
// container's own address; a parentPort of 0 means a free one, which the answer
// tells. An instance that was started as rootlesskit gives the addresses RootlessKit's
// meaning (Defaulter). What RootlessKit's words cannot express (unix sockets, inherited listeners
// without an address) is only listed below /v1/postern; a range is listed there as
// one rule and in RootlessKit's list as one entry a port, all with the rule's id.
//
// An answer that is no success has the body {"message": "..."}, one line. Its status
// is 400 for a request that cannot be served, 404 for an unknown id, 409 for a
// conflict with another rule or program, 413 for a body that is too long, 429 if
// there are too many rules and 503 if it took too long; RootlessKit's clients only
// look whether it is 2xx. Without a port driver the answer is 400.
//
// Who may ask: the socket has mode 0600 in a directory with mode 0700, and each
// client's uid is taken from the kernel (SO_PEERCRED) and must be ours or root's.
// A web page that makes a browser speak to a socket through some proxy is kept out
// by its Origin header and its Host header, which must not name a network host.
//
// A client cannot hold the socket up: connections are bounded, and the time for a
// request's header, for its body and between requests is short.
package apisock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"

	wire "github.com/postern-net/postern/proto/api"
)

// Bounds of what clients may take up.
const (
	maxConns      = 32 // a client uses one; the rest is for parallel ones
	maxHeader     = 8 << 10
	headerTimeout = 2 * time.Second // slowloris: a local client sends its header at once
	idleTimeout   = 5 * time.Second
	answerTimeout = 5 * time.Second
	snapTimeout   = 2 * time.Second // for the engine's answer
	// changeTimeout is for adding and removing rules, the other clients' before
	// included. A thousand rules take about a second.
	changeTimeout = 30 * time.Second
)

// Status is GET /v1/postern/status.
type Status struct {
	Name     string `json:"name"`
	Endpoint string `json:"endpoint"`
	// Offloads is what the kernel does for the endpoint.
	Offloads string    `json:"offloads"`
	MTU      int       `json:"mtu"`
	Started  time.Time `json:"started"`
	// EngineRestarts counts engines that died.
	EngineRestarts int              `json:"engineRestarts"`
	EngineReady    bool             `json:"engineReady"`
	EnginePID      int              `json:"enginePID,omitempty"`
	TCP            TCP              `json:"tcp"`
	Upstreams      []netip.AddrPort `json:"upstreams"`
	Flows          Flows            `json:"flows"`
	// Counters by name; those that are zero are left out.
	Counters map[string]uint64 `json:"counters"`
}

// Flows are the numbers of present flows.
type Flows struct {
	TCP int `json:"tcp"`
	// Express is how many of those go by the express path.
	Express int `json:"express"`

	UDP  int `json:"udp"`
	Echo int `json:"echo"`
}

// TCP is how TCP leaves the container.
type TCP struct {
	// Path is "express" or "netstack".
	Path string `json:"path"`
	// Why says why it is not the express path, or not for everything.
	Why string `json:"why,omitempty"`
}

// Info is GET /v1/info: RootlessKit's own type, and what we add. Its clients ignore
// what they do not know.
type Info struct {
	api.Info
	// TCP is left out where no engine serves the network.
	TCP TCP `json:"tcp,omitzero"`
}

// Source knows the answers. Its methods are called from several goroutines.
type Source interface {
	// Info is GET /v1/info.
	Info(context.Context) (Info, error)
	Status(context.Context) (Status, error)
}

// Server serves one socket; Close ends and awaits its goroutines.
type Server struct {
	http    *http.Server
	serving sync.WaitGroup
}

// Listen binds path, which must not exist, and serves it. Without ports, which may
// be nil, clients are told that there is no port driver.
func Listen(path string, src Source, ports Ports) (*Server, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("bind control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the directory's owner removes it
	// Until here the directory has kept others out.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("close control socket to others: %w", err)
	}
	return serve(newGate(l, os.Getuid()), src, ports), nil
}

func serve(l net.Listener, src Source, ports Ports) *Server {
	s := &Server{http: &http.Server{
		Handler:           Handler(src, ports),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          discard(),
	}}
	s.serving.Go(func() {
		// Serve retries temporary errors itself and ends with Close only.
		_ = s.http.Serve(l)
	})
	return s
}

// Close ends the server and every connection.
func (s *Server) Close() {
	_ = s.http.Close()
	s.serving.Wait()
}

// routes are the answers to requests.
type routes struct {
	src   Source
	ports Ports // nil without a port driver
}

// Handler returns the API as an HTTP handler; ports may be nil.
func Handler(src Source, ports Ports) http.Handler {
	rt := &routes{src: src, ports: ports}
	mux := http.NewServeMux()
	resource(mux, "/v1/info", methods{"GET": rt.info})
	resource(mux, "/v1/ports", methods{"GET": rt.published(rt.list), "POST": rt.published(rt.add)})
	resource(mux, "/v1/ports/{id}", methods{"DELETE": rt.published(rt.remove)})
	resource(mux, "/v1/postern/status", methods{"GET": rt.status})
	resource(mux, "/v1/postern/ports", methods{"GET": rt.published(rt.listAll), "POST": rt.published(rt.addAll)})
	resource(mux, "/v1/postern/ports/{id}", methods{"DELETE": rt.published(rt.remove)})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Errorf("%.64s %.128s: no such resource", r.Method, r.URL.Path))
	})
	return local(mux)
}

// methods are the methods that a resource knows.
type methods map[string]http.HandlerFunc

// resource makes a path answer its methods, and others with what it knows (RFC 9110
// section 15.5.6).
func resource(mux *http.ServeMux, path string, known methods) {
	for method, handle := range known {
		mux.HandleFunc(method+" "+path, handle)
	}
	allow := strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allow)
		fail(w, http.StatusMethodNotAllowed, fmt.Errorf("%.64s %.128s: want %s", r.Method, r.URL.Path, allow))
	})
}

func (rt *routes) info(w http.ResponseWriter, r *http.Request) {
	answer(w, r, func(ctx context.Context) (Info, error) {
		info, err := rt.src.Info(ctx)
		if rt.ports != nil {
			info.PortDriver = driverInfo(rt.ports.Driver())
		}
		return info, err
	})
}

func (rt *routes) status(w http.ResponseWriter, r *http.Request) { answer(w, r, rt.src.Status) }

// answer asks the source and writes what it says as JSON.
func answer[T any](w http.ResponseWriter, r *http.Request, ask func(context.Context) (T, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), snapTimeout)
	defer cancel()
	value, err := ask(ctx)
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	write(w, http.StatusOK, value)
}

// write sends a value as JSON.
func write(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(value) // the client may be gone
}

// fail writes an error in RootlessKit's form.
func fail(w http.ResponseWriter, code int, err error) {
	write(w, code, wire.Error{Message: err.Error()})
}

// errForeign is the answer to requests that a browser may have been tricked into.
var errForeign = errors.New("requests on behalf of a web page are refused")
