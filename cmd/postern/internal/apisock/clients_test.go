package apisock_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rootless-containers/rootlesskit/v3/pkg/api/client"
	"github.com/rootless-containers/rootlesskit/v3/pkg/httputil"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/apisock/apitest"
	"github.com/postern-net/postern/portdriver"
)

// TestRootlessKitClient is RootlessKit's own client, the one in Docker and nerdctl.
func TestRootlessKitClient(t *testing.T) {
	c, err := client.New(listen(t, &apitest.Ports{}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	info, err := c.Info(ctx)
	if err != nil || info.PortDriver == nil || info.PortDriver.Driver != "splice" || info.PortDriver.DisallowLoopbackChildIP {
		t.Fatalf("Info = %+v, %v", info, err)
	}
	pm := c.PortManager()
	spec := port.Spec{Proto: "tcp4", ParentIP: "0.0.0.0", ParentPort: 8080, ChildIP: "127.0.0.1", ChildPort: 8080}
	added, err := pm.AddPort(ctx, spec)
	if err != nil || added.Spec != spec {
		t.Fatalf("AddPort = %+v, %v; want %+v", added, err, spec)
	}
	listed, err := pm.ListPorts(ctx)
	if diff := cmp.Diff([]port.Status{*added}, listed); err != nil || diff != "" {
		t.Errorf("ListPorts: %v\n%s", err, diff)
	}
	refusal(t, "conflict", 409, "publish 0.0.0.0:8080:127.0.0.1:8080/tcp4: the port is taken by rule 1", func() error {
		_, err := pm.AddPort(ctx, spec)
		return err
	})
	if err := pm.RemovePort(ctx, added.ID); err != nil {
		t.Errorf("RemovePort: %v", err)
	}
	refusal(t, "unknown", 404, "remove rule 1: not found", func() error { return pm.RemovePort(ctx, added.ID) })
	if listed, err = pm.ListPorts(ctx); err != nil || listed == nil || len(listed) != 0 {
		t.Errorf("ListPorts of none = %#v, %v; want an empty list and not null", listed, err)
	}
}

// refusal checks that RootlessKit's client shows our message, and nothing else.
func refusal(t *testing.T, what string, code int, message string, do func() error) {
	t.Helper()
	err := do()
	var status *httputil.HTTPStatusError
	if !errors.As(err, &status) || status.StatusCode != code || err.Error() != message {
		t.Errorf("%s: %v, want status %d and %q", what, err, code, message)
	}
}

// TestRootlessctl is the real program, as Debian has it.
func TestRootlessctl(t *testing.T) {
	tool, err := exec.LookPath("rootlessctl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("rootlessctl is missing, and CI=true")
		}
		t.Skip("needs rootlessctl (package rootlesskit)")
	}
	socket := listen(t, &apitest.Ports{})
	for _, step := range []struct {
		args string
		ok   bool
		want string
	}{
		{"add-ports 0.0.0.0:8080:80/tcp [::1]:8081:81/udp6 :8082:82/tcp", true, "1\n2\n3\n"},
		{"list-ports", true, "1     tcp      0.0.0.0     8080"},
		{"list-ports --json", true, `{"id":2,"spec":{"proto":"udp6","parentIP":"::1","parentPort":8081,"childPort":81}}`},
		{"add-ports --json 127.0.0.1:8083:10.0.2.100:83/tcp4", true,
			`{"id":4,"spec":{"proto":"tcp4","parentIP":"127.0.0.1","parentPort":8083,"childPort":83,"childIP":"10.0.2.100"}}`},
		{"add-ports 127.0.0.1:8080:81/tcp", false, "publish 127.0.0.1:8080:81/tcp: the port is taken by rule 1"},
		{"remove-ports 1 2", true, "1\n2\n"},
		{"remove-ports 1", false, "remove rule 1: not found"},
		{"info --json", true, `"driver": "splice"`},
		{"info", true, "Supported protocols: [tcp tcp4 tcp6 udp udp4 udp6]"},
	} {
		cmd := exec.Command(tool, append([]string{"--socket", socket}, strings.Fields(step.args)...)...)
		out, err := cmd.CombinedOutput()
		if (err == nil) != step.ok || !bytes.Contains(out, []byte(step.want)) {
			t.Errorf("rootlessctl %s: %v\n%swant %q", step.args, err, out, step.want)
		}
	}
}

// bound is a real registry, which binds real ports.
type bound struct{ *portdriver.Registry }

func (b bound) Add(_ context.Context, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	return b.AddAll(specs)
}
func (b bound) Remove(_ context.Context, id int) error { return b.Registry.Remove(id) }
func (bound) Driver() string                           { return "splice" }

func newBound(t *testing.T) bound {
	r := portdriver.New(portdriver.Config{})
	t.Cleanup(r.Close)
	return bound{r}
}

// TestSamePort: of many who want a port at the same time one gets it.
func TestSamePort(t *testing.T) {
	const clients = 100
	ports := newBound(t)
	// An address that nobody else has: who gets the port there once it is free again is
	// one of ours.
	own := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
	free, err := ports.Registry.Add(portdriver.Spec{Host: portdriver.Side{Addr: own}, Container: portdriver.Side{Port: 80}})
	if err == nil {
		err = ports.Registry.Remove(free.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	spec := port.Spec{Proto: "tcp", ParentIP: own.String(), ParentPort: int(free.Spec.Host.Port), ChildPort: 80}
	socket := listen(t, ports)
	var won, lost atomic.Int32
	var all sync.WaitGroup
	start := make(chan struct{})
	for range clients {
		all.Go(func() {
			<-start
			c, err := client.New(socket)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, err = c.PortManager().AddPort(t.Context(), spec)
			var status *httputil.HTTPStatusError
			switch {
			case err == nil:
				won.Add(1)
			case errors.As(err, &status) && status.StatusCode == http.StatusConflict:
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	close(start)
	all.Wait()
	if won.Load() != 1 || lost.Load() != clients-1 || len(ports.Rules()) != 1 {
		t.Errorf("%d won and %d lost, %d rules; want 1, %d, 1", won.Load(), lost.Load(), len(ports.Rules()), clients-1)
	}
}

// TestThousand prints what a thousand ports cost, one by one and in one request.
func TestThousand(t *testing.T) {
	n := 1000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	n = int(min(uint64(n), limit.Max/4)) // twice that many ports, and room for the rest
	socket := listen(t, newBound(t))
	theirs, err := client.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	start := time.Now()
	for range n {
		if _, err := theirs.PortManager().AddPort(t.Context(), port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80}); err != nil {
			t.Fatal(err)
		}
	}
	oneByOne := time.Since(start)
	c := apisock.NewClient(socket)
	defer c.Close()
	start = time.Now()
	added, err := c.AddPorts(t.Context(), slices.Repeat([]string{"127.0.0.1::10.0.2.100:80/udp"}, n))
	if err != nil || len(added) != n || !added[n-1].Bound[0].IsValid() {
		t.Fatalf("AddPorts: %d rules, %v", len(added), err)
	}
	t.Logf("%d ports one by one %v, in one request %v", n, oneByOne, time.Since(start))
	if listed, err := c.Ports(t.Context()); err != nil || len(listed) != 2*n {
		t.Errorf("Ports: %d rules, %v", len(listed), err)
	}
}

// TestClient is ours, with what it makes of errors.
func TestClient(t *testing.T) {
	socket := listen(t, &apitest.Ports{})
	c := apisock.NewClient(socket)
	defer c.Close()
	added, err := c.AddPorts(t.Context(), []string{"80", "8080-8081:80-81/udp"})
	if err != nil || len(added) != 2 || added[0].Bound[1].String() != "[::1]:40000" || added[1].Count != 2 {
		t.Fatalf("AddPorts = %+v, %v", added, err)
	}
	if _, err := c.AddPorts(t.Context(), []string{"81:81", "8081:80/udp"}); err == nil ||
		err.Error() != "publish 8081:80/udp: the port is taken by rule 2" {
		t.Errorf("AddPorts with a conflict: %v", err)
	}
	if err := c.RemovePort(t.Context(), 2); err != nil {
		t.Errorf("RemovePort: %v", err)
	}
	if listed, err := c.Ports(t.Context()); err != nil || len(listed) != 1 || listed[0].ID != 1 {
		t.Errorf("Ports = %+v, %v", listed, err)
	}
	gone := apisock.NewClient("/nowhere/api.sock")
	if _, err := gone.Ports(t.Context()); err == nil ||
		err.Error() != "ask /nowhere/api.sock: connect: no such file or directory (see postern ps for running instances)" {
		t.Errorf("Ports of nothing: %v", err)
	}
}

// TestForeignServer: what answers may be no postern.
func TestForeignServer(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[{}",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
		"SSH-2.0-OpenSSH\r\n",
		"",
	} {
		l, err := net.Listen("unix", t.TempDir()+"/s")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, answer)
		})
		c := apisock.NewClient(l.Addr().String())
		if ports, err := c.Ports(t.Context()); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q is taken for %v, %v", answer, ports, err)
		}
		c.Close()
		_ = l.Close()
		serving.Wait()
	}
}

// TestSlowChange: a change may take longer than the timeouts that keep clients from
// holding the socket up, and the connection serves on.
func TestSlowChange(t *testing.T) {
	t.Parallel()
	ports := &apitest.Ports{Delay: make(chan struct{})}
	c := apisock.NewClient(listen(t, ports))
	defer c.Close()
	timer := time.AfterFunc(apisock.LongestAnswer+500*time.Millisecond, func() { close(ports.Delay) })
	defer timer.Stop()
	if added, err := c.AddPorts(t.Context(), []string{"8080:80"}); err != nil || len(added) != 1 {
		t.Fatalf("slow AddPorts = %v, %v", added, err)
	}
	if _, err := c.Ports(t.Context()); err != nil {
		t.Errorf("Ports after it: %v", err)
	}
}

// leaving tells when each Add began and how it ended.
type leaving struct {
	*apitest.Ports
	began chan struct{}
	ended chan error
}

func (l leaving) Add(ctx context.Context, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	l.began <- struct{}{}
	rules, err := l.Ports.Add(ctx, specs)
	l.ended <- err
	return rules, err
}

// TestClientLeaves: a change whose client is gone is given up.
func TestClientLeaves(t *testing.T) {
	ports := leaving{&apitest.Ports{Delay: make(chan struct{})}, make(chan struct{}, 1), make(chan error, 1)}
	c := apisock.NewClient(listen(t, ports))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-ports.began
		cancel()
	}()
	if _, err := c.AddPorts(ctx, []string{"8080:80"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("AddPorts = %v", err)
	}
	select {
	case err := <-ports.ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the change ended with %v, want %v", err, context.Canceled)
		}
	case <-time.After(20 * time.Second):
		t.Error("the change goes on without its client")
	}
}

// endless is a body without end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// TestEndlessBody: the server stops to read where its limit is.
func TestEndlessBody(t *testing.T) {
	socket := listen(t, &apitest.Ports{})
	hc, err := httputil.NewHTTPClient(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer hc.CloseIdleConnections()
	for _, path := range []string{rlk, ours} {
		r, err := hc.Post("http://rootlesskit"+path, "application/json", endless{})
		if err == nil {
			if r.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("POST %s without end: %s", path, r.Status)
			}
			_ = r.Body.Close()
		}
		// Without an answer the connection was closed while we were sending.
	}
	if r, err := hc.Get("http://rootlesskit" + rlk); err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("GET after that: %v", err)
	} else {
		_ = r.Body.Close()
	}
}
