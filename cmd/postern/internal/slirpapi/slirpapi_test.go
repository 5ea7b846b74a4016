package slirpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/apisock/apitest"
	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/netplan"
)

// The control socket's ports are also this socket's.
var _ Ports = apisock.Ports(nil)

const (
	listHostFwd = `{"execute":"list_hostfwd"}`
	noEntries   = `{"return":{"entries":[]},"entries":[]}`
	// soon is what nothing here may take.
	soon = 30 * time.Second
)

// start serves ports at a path.
func start(t *testing.T, ports Ports) (path string) {
	t.Helper()
	return startGate(t, ports, newGate(os.Getuid()))
}

func startGate(t *testing.T, ports Ports, g *gate) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	s, err := listen(path, newTable(ports, netplan.Default().V4), slog.New(slog.DiscardHandler), g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return path
}

// ask sends a request in some pieces, shuts down its side and returns the answer.
func ask(t *testing.T, path string, pieces ...string) string {
	t.Helper()
	c := dial(t, path)
	for _, piece := range pieces {
		if _, err := io.WriteString(c, piece); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
	}
	_ = c.CloseWrite() // it may have been answered and closed
	return answer(t, c)
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(soon))
	return c
}

// answer reads until the end, which may be a reset if the server has not read all.
func answer(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// want asks and compares.
func want(t *testing.T, path, request, wanted string) {
	t.Helper()
	if got := ask(t, path, request); got != wanted {
		t.Errorf("%s\n got %s\nwant %s", request, got, wanted)
	}
}

func badRequest(text string) string { return `{"error":{"desc":"bad request: ` + text + `"}}` }

func add(arguments string) string {
	return `{"execute":"add_hostfwd","arguments":{"proto":"tcp",` + arguments + `}}`
}

func remove(id int) string {
	return fmt.Sprintf(`{"execute":"remove_hostfwd","arguments":{"id":%d}}`, id)
}

// TestLife is the life of rules, also of those that other ways make and end.
func TestLife(t *testing.T) {
	ports := &apitest.Ports{}
	if _, err := ports.Add(t.Context(), []portdriver.Spec{mustParse(t, "0.0.0.0:7000:70")}); err != nil {
		t.Fatal(err)
	}
	path := start(t, ports)
	want(t, path, listHostFwd, noEntries) // the other one is none of this socket's
	want(t, path, remove(1), badRequest("remove_hostfwd: bad arguments.id"))
	want(t, path, add(`"host_port":8080,"guest_port":80`), `{"return":{"id":1}}`)
	want(t, path, add(`"host_port":8080,"guest_port":80`), badRequest("add_hostfwd: slirp_add_hostfwd failed"))
	want(t, path, add(`"host_port":7000,"guest_port":80`), badRequest("add_hostfwd: slirp_add_hostfwd failed"))
	want(t, path, add(`"host_addr":"127.0.0.1","host_port":8081,"guest_addr":"127.0.0.1","guest_port":81`)+"\n", `{"return":{"id":2}}`)
	const one = `{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`
	const two = `{"id":2,"proto":"tcp","host_addr":"127.0.0.1","host_port":8081,"guest_addr":"127.0.0.1","guest_port":81}`
	want(t, path, listHostFwd, `{"return":{"entries":[`+one+`,`+two+`]},"entries":[`+one+`,`+two+`]}`)
	want(t, path, remove(1), `{"return":{}}`)
	want(t, path, remove(1), badRequest("remove_hostfwd: bad arguments.id"))
	want(t, path, add(`"host_port":8080,"guest_port":80`), `{"return":{"id":3}}`)

	const three = `{"id":3,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}`
	if err := ports.Remove(t.Context(), 3); err != nil { // rule 3 is our number 2
		t.Fatal(err)
	}
	want(t, path, listHostFwd, `{"return":{"entries":[`+three+`]},"entries":[`+three+`]}`)
	want(t, path, remove(2), badRequest("remove_hostfwd: bad arguments.id"))
	want(t, path, remove(3), `{"return":{}}`)
	want(t, path, listHostFwd, noEntries)
	if left := ports.Rules(); len(left) != 1 || left[0].ID != 1 {
		t.Errorf("rules left: %v, want the one of others", left)
	}
}

func mustParse(t *testing.T, text string) portdriver.Spec {
	t.Helper()
	spec, err := portdriver.ParseSpec(text)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestSpecs is what requests mean in our words.
func TestSpecs(t *testing.T) {
	const ports = `"host_port":8080,"guest_port":80`
	for arguments, wanted := range map[string]string{
		ports: "0.0.0.0:8080:10.0.2.100:80",
		`"host_addr":"","guest_addr":"",` + ports:              "0.0.0.0:8080:10.0.2.100:80",
		`"host_addr":"127.0.0.1",` + ports:                     "127.0.0.1:8080:10.0.2.100:80",
		`"guest_addr":"10.0.2.100",` + ports:                   "0.0.0.0:8080:10.0.2.100:80",
		`"guest_addr":"10.0.2.15",` + ports:                    "0.0.0.0:8080:10.0.2.15:80",
		`"guest_addr":"0.0.0.0",` + ports:                      "0.0.0.0:8080:10.0.2.15:80",
		`"guest_addr":"127.0.0.1",` + ports:                    "0.0.0.0:8080:127.0.0.1:80",
		`"guest_addr":"127.1.2.3",` + ports:                    "0.0.0.0:8080:127.1.2.3:80",
		`"guest_addr":"10.4.0.7",` + ports:                     "0.0.0.0:8080:10.4.0.7:80",
		`"guest_addr":"10.0.2.2",` + ports:                     "",
		`"guest_addr":"10.0.2.3",` + ports:                     "",
		`"guest_addr":"10.0.2.0",` + ports:                     "",
		`"guest_addr":"10.0.2.255",` + ports:                   "",
		`"guest_addr":"255.255.255.255",` + ports:              "",
		`"guest_addr":"224.0.0.1",` + ports:                    "",
		`"host_addr":"127.0.0.1","guest_addr":"x",` + ports:    "guest_addr",
		`"proto":"udp","host_addr":"127.0.0.1",` + ports:       "twice",
		`"host_addr":"10.0.0.1","host_port":1,"guest_port":65`: "10.0.0.1:1:10.0.2.100:65",
	} {
		fake := &apitest.Ports{}
		got := ask(t, start(t, fake), add(arguments))
		rules := fake.Rules()
		switch wanted {
		case "":
			if got != badRequest("add_hostfwd: slirp_add_hostfwd failed") || len(rules) != 0 {
				t.Errorf("%s: %s, rules %v", arguments, got, rules)
			}
		case "guest_addr":
			if got != badRequest("add_hostfwd: bad arguments.guest_addr") {
				t.Errorf("%s: %s", arguments, got)
			}
		case "twice":
			if got != badRequest("cannot parse JSON") {
				t.Errorf("%s: %s", arguments, got)
			}
		default:
			if got != `{"return":{"id":1}}` || len(rules) != 1 {
				t.Fatalf("%s: %s, rules %v", arguments, got, rules)
			}
			if diff := cmp.Diff(mustParse(t, wanted), rules[0].Spec, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("%s: %s", arguments, diff)
			}
		}
	}
}

// TestNoPorts is --port-driver=none.
func TestNoPorts(t *testing.T) {
	path := start(t, nil)
	want(t, path, add(`"host_port":8080,"guest_port":80`), badRequest("add_hostfwd: slirp_add_hostfwd failed"))
	want(t, path, remove(1), badRequest("remove_hostfwd: bad arguments.id"))
	want(t, path, listHostFwd, noEntries)
}

// TestNoIPv4: the language has no other addresses.
func TestNoIPv4(t *testing.T) {
	plan := netplan.Default()
	plan.V4 = netplan.Family{}
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, &apitest.Ports{}, plan, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, guest := range []string{"", "10.0.2.100", "0.0.0.0", "127.0.0.1"} {
		want(t, path, add(`"host_port":8080,"guest_port":80,"guest_addr":"`+guest+`"`), badRequest("add_hostfwd: slirp_add_hostfwd failed"))
	}
}

// stubborn fails to remove.
type stubborn struct{ apitest.Ports }

func (*stubborn) Remove(context.Context, int) error { return errors.New("busy") }

// TestRemoveFails: what is still published is still listed.
func TestRemoveFails(t *testing.T) {
	path := start(t, &stubborn{})
	want(t, path, add(`"host_port":8080,"guest_port":80`), `{"return":{"id":1}}`)
	want(t, path, remove(1), badRequest("remove_hostfwd: slirp_remove_hostfwd failed"))
	if got := ask(t, path, listHostFwd); !strings.Contains(got, `"id":1,`) {
		t.Errorf("list: %s", got)
	}
}

// TestReading is how a request may arrive.
func TestReading(t *testing.T) {
	g := newGate(os.Getuid())
	g.patience = 2 * time.Second // enough for a client of ours that has to wait for the processor
	path := startGate(t, &apitest.Ports{}, g)
	broken := badRequest("cannot parse JSON")
	tooLarge := badRequest("too large message")
	pad := func(n int) string { return listHostFwd + strings.Repeat(" ", n-len(listHostFwd)) }

	want(t, path, "", broken)
	want(t, path, pad(4095), noEntries)
	want(t, path, pad(4096), tooLarge)
	for _, n := range []int{4097, 8000} {
		want(t, path, pad(n), tooLarge)
	}
	for _, tc := range []struct{ name, request, wanted string }{
		{"complete", listHostFwd, noEntries},
		{"wrong", "xx", broken},
		{"broken off", listHostFwd[:20], broken},
		{"silent", "", ""},
	} {
		c := dial(t, path) // and no shutdown
		if _, err := io.WriteString(c, tc.request); err != nil {
			t.Fatal(err)
		}
		if got := answer(t, c); got != tc.wanted {
			t.Errorf("%s without shutdown: %q, want %q", tc.name, got, tc.wanted)
		}
	}
}

// TestPieces: a client may write a byte at a time.
func TestPieces(t *testing.T) {
	path := start(t, &apitest.Ports{})
	if got := ask(t, path, strings.Split(listHostFwd+"\n", "")...); got != noEntries {
		t.Errorf("%s", got)
	}
	c := dial(t, path)
	for _, piece := range []string{`{"execute"`, `:"list`, `_hostfwd"}`} {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
		drained(t, c)
	}
	if got := answer(t, c); got != noEntries {
		t.Errorf("%s", got)
	}
}

// drained waits until the server has read what was written (unix(7), SIOCOUTQ).
func drained(t *testing.T, c *net.UnixConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(soon); time.Now().Before(end); {
		left := -1
		if err := raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || left == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the server does not read")
}

// TestSilentClients: connections that say nothing are dropped, and more of them than
// are served only make others wait that long.
func TestSilentClients(t *testing.T) {
	g := newGate(os.Getuid())
	g.patience = 2 * time.Second // enough for the last client, who has to wait for the processor
	path := startGate(t, &apitest.Ports{}, g)
	for range 2 * maxConns {
		c := dial(t, path)
		// EPIPE: this one was silent for too long already.
		if _, err := io.WriteString(c, `{"execute":`); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
	}
	want(t, path, listHostFwd, noEntries)
}

// TestFewSilentClients hold nobody up at all.
func TestFewSilentClients(t *testing.T) {
	g := newGate(os.Getuid())
	g.patience = time.Hour
	path := startGate(t, &apitest.Ports{}, g)
	for range maxConns - 1 {
		dial(t, path)
	}
	want(t, path, listHostFwd, noEntries)
}

// TestParallel: every id is given once, and the list has them all in order.
func TestParallel(t *testing.T) {
	path := start(t, &apitest.Ports{})
	const n = 100
	var all sync.WaitGroup
	var mu sync.Mutex
	got := make(map[string]int)
	for i := range n {
		c := dial(t, path)
		all.Go(func() {
			defer c.Close()
			_, _ = io.WriteString(c, add(fmt.Sprintf(`"host_port":%d,"guest_port":80`, 1000+i)))
			_ = c.CloseWrite()
			b, _ := io.ReadAll(c)
			mu.Lock()
			defer mu.Unlock()
			got[string(b)]++
		})
	}
	all.Wait()
	list := ask(t, path, listHostFwd)
	for id := 1; id <= n; id++ {
		if got[fmt.Sprintf(`{"return":{"id":%d}}`, id)] != 1 {
			t.Errorf("id %d was given %d times", id, got[fmt.Sprintf(`{"return":{"id":%d}}`, id)])
		}
		mark := fmt.Sprintf(`{"id":%d,`, id)
		if strings.Count(list, mark) != 2 {
			t.Errorf("id %d is listed %d times, want 2", id, strings.Count(list, mark))
		}
		_, list, _ = strings.Cut(list, mark)
		list = mark + list
	}
}

// TestOtherUser: a client whose uid is not ours is dropped without an answer. The
// gate is told another uid, as a test has only one; root is let in by any gate.
func TestOtherUser(t *testing.T) {
	if os.Getuid() == 0 {
		asUser(t)
		return
	}
	path := startGate(t, &apitest.Ports{}, newGate(os.Getuid()+1))
	c := dial(t, path)
	if got := answer(t, c); got != "" {
		t.Errorf("another user got %s", got)
	}
}
