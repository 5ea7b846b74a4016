package apisock_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/apisock/apitest"
	"github.com/postern-net/postern/portdriver"
	wire "github.com/postern-net/postern/proto/api"
)

// source is an instance of which nothing but its ports is asked.
type source struct{}

func (source) Info(context.Context) (apisock.Info, error) {
	return apisock.Info{Info: api.Info{APIVersion: api.Version, NetworkDriver: &api.NetworkDriverInfo{Driver: "postern", ChildIP: net.IPv4(10, 0, 2, 100)}},
		TCP: apisock.TCP{Path: "netstack"}}, nil
}

func (source) Status(context.Context) (apisock.Status, error) { return apisock.Status{}, nil }

var _ apisock.Ports = (*apitest.Ports)(nil)

// listen serves ports on a socket with a short path.
func listen(t *testing.T, ports apisock.Ports) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "api.sock")
	s, err := apisock.Listen(path, source{}, ports)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return path
}

// ask sends one request to a handler.
func ask(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://rootlesskit"+path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func handler(ports apisock.Ports) http.Handler {
	return apisock.Handler(source{}, ports)
}

const (
	rlk  = "/v1/ports"
	ours = "/v1/postern/ports"
)

// TestRootlessKitShape is the wire format of RootlessKit's API, byte by byte.
func TestRootlessKitShape(t *testing.T) {
	h := handler(&apitest.Ports{})
	for _, step := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", rlk, "", 200, "[]\n"},
		{"POST", rlk, `{"proto":"tcp","parentIP":"0.0.0.0","parentPort":8080,"childIP":"10.0.2.100","childPort":80}`, 201,
			`{"id":1,"spec":{"proto":"tcp","parentIP":"0.0.0.0","parentPort":8080,"childPort":80,"childIP":"10.0.2.100"}}` + "\n"},
		{"POST", rlk, `{"proto":"udp6","parentIP":"::","parentPort":53,"childPort":53,"later":{"x":1}}`, 201,
			`{"id":2,"spec":{"proto":"udp6","parentIP":"::","parentPort":53,"childPort":53}}` + "\n"},
		{"POST", rlk, ` {"proto":"tcp","parentPort":0,"childPort":80}` + "\n", 201,
			`{"id":3,"spec":{"proto":"tcp","parentPort":40000,"childPort":80}}` + "\n"},
		{"DELETE", rlk + "/1", "", 200, ""},
		{"DELETE", rlk + "/3", "", 200, ""},
		{"GET", rlk, "", 200, `[{"id":2,"spec":{"proto":"udp6","parentIP":"::","parentPort":53,"childPort":53}}]` + "\n"},
		{"GET", "/v1/info", "", 200, `{"apiVersion":"1.1.3","version":"","stateDir":"","childPID":0,` +
			`"networkDriver":{"driver":"postern","childIP":"10.0.2.100"},` +
			`"portDriver":{"driver":"splice","protos":["tcp","tcp4","tcp6","udp","udp4","udp6"]},"tcp":{"path":"netstack"}}` + "\n"},
	} {
		w := ask(h, step.method, step.path, step.body)
		if w.Code != step.code || w.Body.String() != step.want {
			t.Errorf("%s %s %s = %d %s, want %d %s", step.method, step.path, step.body, w.Code, w.Body, step.code, step.want)
		}
	}
	w := ask(handler(&apitest.Ports{Name: "netstack"}), "GET", "/v1/info", "")
	if !strings.Contains(w.Body.String(), `"udp6"],"disallowLoopbackChildIP":true`) {
		t.Errorf("netstack: %s", w.Body)
	}
}

// TestRefused is every request that changes nothing, with its status.
func TestRefused(t *testing.T) {
	ports := &apitest.Ports{Max: 3}
	h := handler(ports)
	if w := ask(h, "POST", rlk, `{"proto":"tcp","parentPort":8080,"childPort":80}`); w.Code != 201 {
		t.Fatalf("first rule: %d %s", w.Code, w.Body)
	}
	big := `{"proto":"tcp","parentIP":"` + strings.Repeat("x", wire.MaxRootlessKit) + `"}`
	many := `{"specs":["` + strings.Repeat(`81","`, wire.MaxSpecs) + `81"]}`
	for _, tc := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", rlk, `{"proto":"tcp","parentPort":8080,"childPort":81}`, 409},
		{"POST", rlk, `{"proto":"sctp","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"TCP","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":65536,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":-1,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":81,"childPort":0}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":81.5,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":"81","childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":99999999999999999999,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentIP":"localhost","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentIP":"127.0.0.1:81,","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","childIP":"10.0.2.0/24","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp4","parentIP":"::1","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"udp6","parentIP":"127.0.0.1","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, `{"proto":"tcp","childIP":"fe80::1%eth0","parentPort":81,"childPort":81}`, 400},
		{"POST", rlk, ``, 400},
		{"POST", rlk, `null`, 400},
		{"POST", rlk, `[]`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":81,"childPort":81}{}`, 400},
		{"POST", rlk, `{"proto":"tcp","parentPort":81,"childPort":81`, 400},
		{"POST", rlk, strings.Repeat("[", wire.MaxRootlessKit), 400},
		{"POST", rlk, big, 413},
		{"DELETE", rlk + "/2", "", 404},
		{"DELETE", rlk + "/0", "", 404},
		{"DELETE", rlk + "/-1", "", 404},
		{"DELETE", rlk + "/one", "", 400},
		{"DELETE", rlk + "/1x", "", 400},
		{"DELETE", rlk + "/99999999999999999999", "", 400},
		{"DELETE", rlk + "/1/2", "", 404},
		{"DELETE", rlk, "", 405},
		{"PUT", rlk, `{}`, 405},
		{"GET", rlk + "/1", "", 405},
		{"POST", "/v1/info", "", 405},
		{"PATCH", ours, "", 405},
		{"POST", ours, `{}`, 400},
		{"POST", ours, `{"specs":[]}`, 400},
		{"POST", ours, `{"spec":"81","specs":["82"]}`, 400},
		{"POST", ours, `{"specs":["81","no spec"]}`, 400},
		{"POST", ours, `{"specs":["81",82]}`, 400},
		{"POST", ours, many, 400},
		{"POST", ours, `{"specs":["81:81","8080:80"]}`, 409},
		{"POST", ours, `{"specs":["81:81","82:82","83:83"]}`, 429},
		{"POST", ours, `{"spec":"81"}{"spec":"82"}`, 400},
		{"POST", ours, strings.Repeat(" ", wire.MaxAddPorts) + `{"spec":"81"}`, 413},
		{"DELETE", ours + "/7", "", 404},
		{"DELETE", ours + "/seven", "", 400},
	} {
		w := ask(h, tc.method, tc.path, tc.body)
		var e wire.Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Message == "" || strings.Contains(e.Message, "\n") || len(e.Message) > 512 {
			t.Errorf("%s %s %.80s: no good message in %.600s", tc.method, tc.path, tc.body, w.Body)
		}
		if w.Code != tc.want || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %s %.80s = %d %s, want %d", tc.method, tc.path, tc.body, w.Code, w.Body, tc.want)
		}
	}
	if rules := ports.Rules(); len(rules) != 1 {
		t.Errorf("%d rules are in force after all that, want the first: %v", len(rules), rules)
	}
	if w := ask(h, "PUT", rlk, ""); w.Header().Get("Allow") != "GET, POST" {
		t.Errorf("Allow: %q", w.Header().Get("Allow"))
	}
}

// TestWebPagesCannotPublish is fault A5: no header that a browser sends by itself
// may come with a change.
func TestWebPagesCannotPublish(t *testing.T) {
	ports := &apitest.Ports{}
	h := handler(ports)
	body := `{"proto":"tcp","parentPort":8080,"childPort":80}`
	for _, header := range [][]string{{"Origin", "http://evil.example"}, {"Origin", "null"}} {
		if w := ask(h, "POST", rlk, body, header...); w.Code != http.StatusForbidden {
			t.Errorf("POST with %v = %d", header, w.Code)
		}
	}
	r := httptest.NewRequest("POST", "http://evil.example"+rlk, strings.NewReader(body))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden || len(ports.Rules()) != 0 {
		t.Errorf("POST for a network host = %d, %d rules", w.Code, len(ports.Rules()))
	}
}

// TestNoDriver is --port-driver none.
func TestNoDriver(t *testing.T) {
	h := apisock.Handler(source{}, nil)
	for _, r := range [][2]string{{"GET", rlk}, {"POST", rlk}, {"DELETE", rlk + "/1"}, {"GET", ours}, {"POST", ours}, {"DELETE", ours + "/1"}} {
		w := ask(h, r[0], r[1], "{}")
		if w.Code != 400 || w.Body.String() != `{"message":"no PortDriver is available (the instance runs with --port-driver=none)"}`+"\n" {
			t.Errorf("%s %s = %d %s", r[0], r[1], w.Code, w.Body)
		}
	}
	if w := ask(h, "GET", "/v1/info", ""); strings.Contains(w.Body.String(), "portDriver") {
		t.Errorf("info without a driver: %s", w.Body)
	}
}

// fixed has rules that no client of RootlessKit's can make.
type fixed struct{ *apitest.Ports }

func (fixed) Rules() []portdriver.Rule {
	at := func(s string) []portdriver.Listener {
		return []portdriver.Listener{{Network: portdriver.NetTCP, Bound: netip.MustParseAddrPort(s)}}
	}
	var rules []portdriver.Rule
	for i, r := range []struct {
		spec      string
		listeners []portdriver.Listener
	}{
		{"8000-8001:80-81,proxy=v2", nil},
		{"unix:/run/s:80", []portdriver.Listener{{Network: portdriver.NetUnix}}},
		{"9000:unix:/run/c", at("127.0.0.1:9000")},
		{"reverse:unix:/run/db:5432", at("10.0.2.100:5432")},
		{"fd:web:[::1]:80", at("192.0.2.1:443")},
	} {
		spec, err := portdriver.ParseSpec(r.spec)
		if err != nil {
			panic(err)
		}
		rules = append(rules, portdriver.Rule{ID: i + 1, Spec: spec, Listeners: r.listeners, Auto: i == 0})
	}
	return rules
}

// TestListed: RootlessKit's clients see what their words can say, ours see all.
func TestListed(t *testing.T) {
	h := handler(fixed{&apitest.Ports{}})
	want := `[{"id":1,"spec":{"proto":"tcp","parentPort":8000,"childPort":80}},` +
		`{"id":1,"spec":{"proto":"tcp","parentPort":8001,"childPort":81}},` +
		`{"id":5,"spec":{"proto":"tcp","parentIP":"192.0.2.1","parentPort":443,"childPort":80,"childIP":"::1"}}]` + "\n"
	if got := ask(h, "GET", rlk, "").Body.String(); got != want {
		t.Errorf("GET %s = %s, want %s", rlk, got, want)
	}
	want = `[{"id":1,"spec":"8000-8001:80-81/tcp,proxy=v2","proto":"tcp","count":2,"bound":[],"containerPort":80,"auto":true,"proxy":2},` +
		`{"id":2,"spec":"unix:/run/s:80/tcp","proto":"tcp","count":1,"bound":[],"hostPath":"/run/s","containerPort":80},` +
		`{"id":3,"spec":"9000:unix:/run/c","proto":"tcp","count":1,"bound":["127.0.0.1:9000"],"containerPath":"/run/c"},` +
		`{"id":4,"spec":"reverse:unix:/run/db:5432/tcp","proto":"tcp","count":1,"bound":["10.0.2.100:5432"],"hostPath":"/run/db","containerPort":5432,"reverse":true},` +
		`{"id":5,"spec":"fd:web:[::1]:80/tcp","proto":"tcp","count":1,"bound":["192.0.2.1:443"],"containerAddr":"::1","containerPort":80}]` + "\n"
	if got := ask(h, "GET", ours, "").Body.String(); got != want {
		t.Errorf("GET %s =\n%s want\n%s", ours, got, want)
	}
}
