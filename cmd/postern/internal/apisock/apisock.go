// Package apisock is an instance's control socket: HTTP/1.1 over a unix socket,
// as RootlessKit's clients expect it, plus our own questions below /v1/postern.
//
//	GET /v1/info            what RootlessKit's API 1.1.3 tells
//	GET /v1/postern/status  counters, flows and engine of this instance
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
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
)

// Bounds of what clients may take up.
const (
	maxConns      = 32 // a client uses one; the rest is for parallel ones
	maxHeader     = 8 << 10
	headerTimeout = 2 * time.Second // slowloris: a local client sends its header at once
	idleTimeout   = 5 * time.Second
	answerTimeout = 5 * time.Second
	snapTimeout   = 2 * time.Second // for the engine's answer
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
	Upstreams      []netip.AddrPort `json:"upstreams"`
	Flows          Flows            `json:"flows"`
	// Counters by name; those that are zero are left out.
	Counters map[string]uint64 `json:"counters"`
}

// Flows are the numbers of present flows.
type Flows struct {
	TCP  int `json:"tcp"`
	UDP  int `json:"udp"`
	Echo int `json:"echo"`
}

// Source knows the answers. Its methods are called from several goroutines.
type Source interface {
	// Info is GET /v1/info, RootlessKit's own type.
	Info(context.Context) (api.Info, error)
	Status(context.Context) (Status, error)
}

// Server serves one socket; Close ends and awaits its goroutines.
type Server struct {
	http    *http.Server
	serving sync.WaitGroup
}

// Listen binds path, which must not exist, and serves it.
func Listen(path string, src Source) (*Server, error) {
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
	return serve(newGate(l, os.Getuid()), src), nil
}

func serve(l net.Listener, src Source) *Server {
	s := &Server{http: &http.Server{
		Handler:           Handler(src),
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

// Handler returns the API as an HTTP handler.
func Handler(src Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, src.Info)
	})
	mux.HandleFunc("GET /v1/postern/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, src.Status)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Errorf("%.64s %.128s: no such resource", r.Method, r.URL.Path))
	})
	return local(mux)
}

// answer asks the source and writes what it says as JSON.
func answer[T any](w http.ResponseWriter, r *http.Request, ask func(context.Context) (T, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), snapTimeout)
	defer cancel()
	value, err := ask(ctx)
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client may be gone
}

// fail writes an error in RootlessKit's form.
func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": err.Error()})
}

// errForeign is the answer to requests that a browser may have been tricked into.
var errForeign = errors.New("requests on behalf of a web page are refused")
