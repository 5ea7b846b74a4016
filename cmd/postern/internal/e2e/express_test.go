package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// highway is an instance's way for TCP and packets.
type highway struct {
	mode     string // "run", "attach" or "path"
	endpoint string
	mtu      int
	tcp      string // --tcp
}

func (h highway) String() string { return fmt.Sprintf("%s/%s/%d/%s", h.mode, h.endpoint, h.mtu, h.tcp) }

// begin starts the instance.
func (h highway) begin(t testing.TB, a account, flags ...string) *inst {
	t.Helper()
	needEndpoint(t, h.endpoint)
	flags = append([]string{"--endpoint", h.endpoint, "--mtu", fmt.Sprint(h.mtu), "--tcp", h.tcp}, flags...)
	switch h.mode {
	case "attach":
		f := newForeign(t, a)
		return f.attach(t, append(flags, f.pid())...)
	case "path": // of whose processes nothing is known
		f := newForeign(t, a)
		i := f.attach(t, append(flags, "--netns", "/proc/"+f.pid()+"/ns/net", "--userns", "/proc/"+f.pid()+"/ns/user")...)
		i.inside = f.pid()
		return i
	}
	return a.start(t, "fast", flags...)
}

// overHighways runs a test over instances.
func overHighways(t *testing.T, list []highway, f func(t *testing.T, h highway)) {
	for _, h := range list {
		t.Run(h.String(), func(t *testing.T) { f(t, h) })
	}
}

// expressKinds are express instances of both endpoints, expressEverywhere of all kinds.
var (
	expressKinds      = []highway{{"run", "tap", 65520, "express"}, {"attach", "packet", 1500, "express"}}
	expressEverywhere = []highway{
		{"run", "tap", 65520, "express"},
		{"run", "tap", 1500, "express"},
		{"run", "packet", 1280, "express"},
		{"attach", "tap", 1280, "express"},
		{"attach", "packet", 65520, "express"},
		{"path", "tap", 1500, "auto"},
	}
)

// someKinds is the first of the express kinds, or all where tests may take long.
func someKinds() []highway {
	if large() {
		return expressKinds
	}
	return expressKinds[:1]
}

// overHighwaysAtOnce is overHighways for tests that wait more than they work.
func overHighwaysAtOnce(t *testing.T, list []highway, f func(t *testing.T, h highway)) {
	overHighways(t, list, func(t *testing.T, h highway) {
		t.Parallel()
		f(t, h)
	})
}

// enter is what postern exec enters the instance's network by.
func (i *inst) enter() string {
	if i.inside != "" {
		return i.inside
	}
	return i.name
}

// standing is a role inside an instance that has said its first line and waits for the
// end of its input to say the rest.
type standing struct {
	first string
	cmd   *exec.Cmd
	input io.Closer
	rest  chan string
	errs  *lockedBuffer
}

// stand starts a role that stays.
func (i *inst) stand(t testing.TB, args ...string) *standing {
	t.Helper()
	return newStanding(t, i.postern(context.Background(), append([]string{"exec", i.enter(), "--", probe()}, args...)...))
}

func newStanding(t testing.TB, cmd *exec.Cmd) *standing {
	t.Helper()
	s := &standing{cmd: cmd, rest: make(chan string, 1), errs: &lockedBuffer{}}
	cmd.Stderr = s.errs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.input = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.input.Close()
		select {
		case <-s.rest:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
	})
	r := bufio.NewReader(stdout)
	line := make(chan string, 1)
	go func() {
		first, _ := r.ReadString('\n')
		line <- first
		rest, _ := io.ReadAll(r)
		s.rest <- string(rest)
		close(s.rest)
	}()
	select {
	case s.first = <-line:
	case <-time.After(within):
		t.Fatalf("%s: says nothing: %s", strings.Join(cmd.Args, " "), s.errs)
	}
	if !strings.HasPrefix(s.first, "ready") {
		_ = cmd.Wait()
		t.Fatalf("%s: %q: %s", strings.Join(cmd.Args, " "), s.first, s.errs)
	}
	return s
}

// end lets the role end, and returns what else it said; it fails the test if the role
// failed.
func (s *standing) end(t testing.TB) string {
	t.Helper()
	_ = s.input.Close()
	return s.finish(t)
}

// finish waits for a role that ends by itself.
func (s *standing) finish(t testing.TB) string {
	t.Helper()
	select {
	case rest := <-s.rest:
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", strings.Join(s.cmd.Args[3:], " "), err, s.errs)
		}
		return strings.TrimSpace(rest)
	case <-time.After(within):
		t.Fatalf("%s does not end: %s", strings.Join(s.cmd.Args, " "), s.errs)
		return ""
	}
}

// expressReport is the part of GET /v1/postern/status that is about the express path.
type expressReport struct {
	EngineRestarts int    `json:"engineRestarts"`
	EnginePID      int    `json:"enginePID"`
	TCP            tcpWay `json:"tcp"`
	Flows          struct {
		TCP     int `json:"tcp"`
		Express int `json:"express"`
		UDP     int `json:"udp"`
	} `json:"flows"`
	Counters map[string]uint64 `json:"counters"`
}

// tcpWay is how TCP leaves, in GET /v1/info and the status.
type tcpWay struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// express asks the control socket.
func (i *inst) express(t testing.TB) (s expressReport) {
	t.Helper()
	if err := i.report(&s); err != nil {
		t.Fatalf("control socket of %s: %v", i.name, err)
	}
	return s
}

// awaitFlows waits until so many flows are there, and so many of them express.
func (i *inst) awaitFlows(t testing.TB, tcp, express int) {
	t.Helper()
	var s expressReport
	err := eventually(patience, func() error {
		s = i.express(t)
		return failIf(s.Flows.TCP != tcp || s.Flows.Express != express, "%d flows, %d of them express", s.Flows.TCP, s.Flows.Express)
	})
	if err != nil {
		t.Errorf("%v; want %d and %d; %v", err, tcp, express, s.Counters)
	}
}

// about returns the counters whose names hold a word, as text.
func about(counters map[string]uint64, word string) string {
	found := map[string]uint64{}
	for name, n := range counters {
		if strings.Contains(name, word) {
			found[name] = n
		}
	}
	return strings.Trim(fmt.Sprint(found), "map[]")
}

// TestExpress: kernel sockets of the container's own go express, on every kind of
// instance, and carry the bytes.
func TestExpress(t *testing.T) {
	overHighways(t, expressEverywhere, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		s := i.express(t)
		if s.TCP.Path != "express" || s.TCP.Why != "" {
			t.Errorf("TCP goes by %+v", s.TCP)
		}
		for _, addr := range []string{remote4, remote6} {
			held := i.stand(t, "@hold", "addr="+addr, "n=5")
			i.awaitFlows(t, 5, 5)
			t.Log(addr, held.first, held.end(t))
			i.awaitFlows(t, 0, 0)
			t.Log(finish(i.postern(t.Context(), "exec", i.enter(), "--", probe(), "@transfer", addr, fmt.Sprint(transferSize()/4))).out)
		}
		s = i.express(t)
		if s.EngineRestarts != 0 {
			t.Errorf("the engine died %d times", s.EngineRestarts)
		}
		t.Log(about(s.Counters, "tcp"), about(s.Counters, "express"))
	})
}
