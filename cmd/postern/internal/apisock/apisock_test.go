package apisock

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
	"golang.org/x/sys/unix"
)

// fakeSource answers with what the test put in.
type fakeSource struct {
	info   api.Info
	status Status
	err    error
}

func (f *fakeSource) Info(context.Context) (Info, error) {
	return Info{Info: f.info, TCP: TCP{Path: "express"}}, f.err
}
func (f *fakeSource) Status(context.Context) (Status, error) { return f.status, f.err }

func listen(t *testing.T, src Source) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "api.sock")
	s, err := Listen(path, src, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return path
}

func client(path string) *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}},
	}
}

func get(t *testing.T, c *http.Client, url string) (code int, body string) {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// TestInfoShape is the wire format that Docker and nerdctl read (RootlessKit's API 1.1.3).
func TestInfoShape(t *testing.T) {
	path := listen(t, &fakeSource{info: api.Info{
		APIVersion: api.Version, Version: "1.0.0", StateDir: "/run/user/1000/postern/one", ChildPID: 10042,
		NetworkDriver: &api.NetworkDriverInfo{Driver: "postern", DNS: []net.IP{net.IPv4(10, 0, 2, 3)},
			ChildIP: net.IPv4(10, 0, 2, 100), IPv6: true},
	}})
	code, body := get(t, client(path), "http://rootlesskit/v1/info")
	want := `{"apiVersion":"1.1.3","version":"1.0.0","stateDir":"/run/user/1000/postern/one","childPID":10042,` +
		`"networkDriver":{"driver":"postern","dns":["10.0.2.3"],"childIP":"10.0.2.100","ipv6":true},"tcp":{"path":"express"}}` + "\n"
	if code != http.StatusOK || body != want {
		t.Errorf("GET /v1/info = %d %s, want %s", code, body, want)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v; want 0600", st.Mode(), err)
	}
}

func TestErrors(t *testing.T) {
	src := &fakeSource{status: Status{Name: "one", Counters: map[string]uint64{"frames_in": 3}}}
	c := client(listen(t, src))
	if code, body := get(t, c, "http://x/v1/postern/status"); code != http.StatusOK || !strings.Contains(body, `"frames_in":3`) {
		t.Errorf("status = %d %s", code, body)
	}
	for _, path := range []string{"/", "/v1/ports/", "/v1/info/x", "/v2/info"} {
		code, body := get(t, c, "http://x"+path)
		var e struct{ Message string }
		if code != http.StatusNotFound || json.Unmarshal([]byte(body), &e) != nil || e.Message == "" {
			t.Errorf("GET %s = %d %s, want 404 with a message", path, code, body)
		}
	}
	src.err = errors.New("no engine")
	if code, body := get(t, c, "http://x/v1/postern/status"); code != http.StatusInternalServerError || body != `{"message":"no engine"}`+"\n" {
		t.Errorf("failing source = %d %s", code, body)
	}
}

// TestWebPages is fault A5: what a browser may be tricked into sending.
func TestWebPages(t *testing.T) {
	h := Handler(&fakeSource{}, nil)
	for _, tc := range []struct {
		host, origin string
		want         int
	}{
		{"rootlesskit", "", 200}, {"localhost", "", 200}, {"docker", "", 200},
		{"rootlesskit", "http://evil.example", 403}, {"rootlesskit", "null", 403},
		{"evil.example", "", 403}, {"127.0.0.1", "", 403}, {"localhost:8080", "", 403}, {"[::1]", "", 403},
	} {
		r := httptest.NewRequest("GET", "/v1/info", nil)
		r.Host = tc.host
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tc.want {
			t.Errorf("Host %q Origin %q: %d, want %d", tc.host, tc.origin, w.Code, tc.want)
		}
	}
}

// TestOtherUser: a client whose uid is not ours is dropped without an answer. The
// gate is told another uid, as a test has only one; root is let in by any gate.
func TestOtherUser(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root is let in by every gate; the scripts run this as an ordinary user")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s := serve(newGate(l, os.Getuid()+1), &fakeSource{}, nil)
	defer s.Close()
	if r, err := client(l.Addr().String()).Get("http://x/v1/info"); err == nil {
		r.Body.Close()
		t.Errorf("another user got an answer: %d", r.StatusCode)
	}
}

// TestSlowClients is fault A1: connections that say nothing are dropped, and more
// than maxConns of them only make others wait that long.
func TestSlowClients(t *testing.T) {
	path := listen(t, &fakeSource{})
	for range 2 * maxConns {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// EPIPE: this one was slow enough already.
		if _, err := io.WriteString(c, "GET /v1/info HTTP/1.1\r\nHos"); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
	}
	c := client(path)
	c.Timeout = 10 * headerTimeout
	if code, _ := get(t, c, "http://x/v1/info"); code != http.StatusOK {
		t.Errorf("GET among slow clients = %d", code)
	}
}

// TestClose ends with connections open.
func TestClose(t *testing.T) {
	dir := t.TempDir()
	s, err := Listen(filepath.Join(dir, "s"), &fakeSource{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range maxConns + 5 {
		c, err := net.Dial("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	done := make(chan struct{})
	go func() { s.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close hangs")
	}
}
