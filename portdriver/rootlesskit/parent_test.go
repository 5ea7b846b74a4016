package rootlesskit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/rootlesskit"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
)

var background = context.Background()

// add publishes, and removes at the end.
func (r *running) add(t *testing.T, s port.Spec) *port.Status {
	t.Helper()
	status, err := r.AddPort(background, s)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// seen asks a server who its client is.
func seen(t *testing.T, addr string) (client, server string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return c.LocalAddr().String(), strings.TrimSpace(string(b))
}

func TestDetachedNetNS(t *testing.T) {
	stacktest.NoLeaks(t)
	r := run(t, true, nil, "127.0.0.1:80")
	r.add(t, port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 20001, ChildPort: 80})
	if client, server := seen(t, "127.0.0.1:20001"); client != server {
		t.Errorf("the server saw %s, want %s", server, client)
	}
}

// Without a child address the one of the network driver is meant, if there is one.
func TestChildAddress(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, tc := range []struct {
		name   string
		cctx   *port.ChildContext
		server string
		childIP,
		want string
	}{
		{"nothing known", nil, "127.0.0.1:80", "", "127.0.0.1"},
		{"no address known", &port.ChildContext{}, "127.0.0.1:80", "", "127.0.0.1"},
		{"address known", &port.ChildContext{IP: net.IPv4(127, 0, 0, 9)}, "127.0.0.9:80", "", "127.0.0.1"},
		{"another asked for", &port.ChildContext{IP: net.IPv4(127, 0, 0, 9)}, "[::1]:80", "::1", "::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := run(t, false, tc.cctx, tc.server)
			r.add(t, port.Spec{Proto: "tcp4", ParentIP: "127.0.0.1", ParentPort: 20002, ChildPort: 80, ChildIP: tc.childIP})
			_, server := seen(t, "127.0.0.1:20002")
			if got := netip.MustParseAddrPort(server).Addr().String(); got != tc.want {
				t.Errorf("the server saw %s, want %s", got, tc.want)
			}
		})
	}
}

// Without a parent address every address of the host is meant.
func TestEveryParentAddress(t *testing.T) {
	stacktest.NoLeaks(t)
	nstest.NewRouter(t)
	r := run(t, false, nil, "127.0.0.1:80")
	all := []string{"127.0.0.1", "192.0.2.1", "::1", "2001:db8:1::1"}
	for i, tc := range []struct {
		proto string
		reach []string
	}{{"tcp", all}, {"tcp4", all[:2]}, {"tcp6", all[2:]}} {
		n := 20010 + i
		status := r.add(t, port.Spec{Proto: tc.proto, ParentPort: n, ChildPort: 80})
		var reached []string
		for _, addr := range all {
			c, err := net.Dial("tcp", net.JoinHostPort(addr, fmt.Sprint(n)))
			if err == nil {
				c.Close()
				reached = append(reached, addr)
			}
		}
		if d := cmp.Diff(tc.reach, reached); d != "" {
			t.Errorf("%s is reached at (-want +got):\n%s", tc.proto, d)
		}
		if err := r.RemovePort(background, status.ID); err != nil {
			t.Error(err)
		}
		if c, err := net.Dial("tcp", net.JoinHostPort(tc.reach[0], fmt.Sprint(n))); err == nil {
			c.Close()
			t.Errorf("%s is still reached after its port was removed", tc.proto)
		}
	}
}

func TestRefusedSpecs(t *testing.T) {
	stacktest.NoLeaks(t)
	r := run(t, false, nil)
	good := port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 20020, ChildPort: 80}
	r.add(t, good)
	for name, change := range map[string]func(*port.Spec){
		"no protocol":    func(s *port.Spec) { s.Proto = "" },
		"sctp":           func(s *port.Spec) { s.Proto = "sctp" },
		"parent address": func(s *port.Spec) { s.ParentIP = "localhost" },
		"child address":  func(s *port.Spec) { s.ChildIP = "1.2.3" },
		"parent port 0":  func(s *port.Spec) { s.ParentPort = 0 },
		"parent port":    func(s *port.Spec) { s.ParentPort = 65536 },
		"child port":     func(s *port.Spec) { s.ChildPort = -1 },
		"family":         func(s *port.Spec) { s.Proto = "tcp6" },
		"taken":          func(s *port.Spec) {},
		"overlap":        func(s *port.Spec) { s.ParentIP = "0.0.0.0"; s.Proto = "tcp4" },
		"every address":  func(s *port.Spec) { s.ParentIP = "" },
	} {
		spec := good
		change(&spec)
		if _, err := r.AddPort(background, spec); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line", name, err)
		}
	}
	cancelled, cancel := context.WithCancel(background)
	cancel()
	spec := good
	spec.ParentPort++
	if _, err := r.AddPort(cancelled, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	if list, err := r.ListPorts(background); err != nil || len(list) != 1 || list[0].Spec != good {
		t.Errorf("ports %+v, %v; want the first one only", list, err)
	}
}

// Of a hundred who want one port, one gets it; every change leaves the list right.
func TestConcurrentChanges(t *testing.T) {
	stacktest.NoLeaks(t)
	r := run(t, false, nil)
	spec := port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 20030, ChildPort: 80}
	var wins, others sync.Map
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if status, err := r.AddPort(background, spec); err == nil {
				wins.Store(status.ID, status)
			} else if !errors.Is(err, portdriver.ErrConflict) {
				t.Errorf("error %v, want a conflict", err)
			}
			own := spec
			own.ParentPort = 20100 + i
			status, err := r.AddPort(background, own)
			if err != nil {
				t.Error(err)
				return
			}
			others.Store(status.ID, status)
		})
	}
	wg.Wait()
	won := 0
	wins.Range(func(any, any) bool { won++; return true })
	list, err := r.ListPorts(background)
	if won != 1 || err != nil || len(list) != 101 {
		t.Errorf("%d got the port, %d are listed, %v; want 1 and 101", won, len(list), err)
	}
	for _, s := range list {
		wg.Go(func() {
			if err := r.RemovePort(background, s.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := r.ListPorts(background); err != nil || len(list) != 0 {
		t.Errorf("%d are left, %v", len(list), err)
	}
	if err := r.RemovePort(background, 1); !errors.Is(err, portdriver.ErrNotFound) {
		t.Errorf("removing what is gone: %v", err)
	}
}

func TestListIsNeverNull(t *testing.T) {
	d := rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: t.TempDir()})
	list, err := d.ListPorts(background)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := json.Marshal(list); err != nil || string(b) != "[]" {
		t.Errorf("%s, %v; want []", b, err)
	}
	if _, err := d.AddPort(background, port.Spec{Proto: "tcp", ParentPort: 1, ChildPort: 1}); err == nil {
		t.Error("a driver that does not run has published a port")
	}
	if err := d.RemovePort(background, 1); err == nil {
		t.Error("a driver that does not run has removed a port")
	}
}

func TestInfo(t *testing.T) {
	info, err := rootlesskit.NewParentDriver(rootlesskit.Config{}).Info(background)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"driver":"postern","protos":["tcp","tcp4","tcp6","udp","udp4","udp6"],"disallowLoopbackChildIP":false}`
	var got bytes.Buffer
	if err := json.Compact(&got, b); err != nil || !sameJSON(t, got.String(), want) {
		t.Errorf("info %s, want %s", got.String(), want)
	}
}

// sameJSON compares what is in two texts; what is left out is the zero value.
func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y map[string]any
	for text, into := range map[string]*map[string]any{a: &x, b: &y} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []map[string]any{x, y} {
		for k, v := range m {
			if v == false {
				delete(m, k)
			}
		}
	}
	return cmp.Equal(x, y)
}

// RootlessKit may end before the child has come.
func TestQuitBeforeTheChild(t *testing.T) {
	stacktest.NoLeaks(t)
	dir := t.TempDir()
	d := rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: dir})
	quit, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.RunParentDriver(make(chan struct{}), quit, nil) }()
	quit <- struct{}{}
	if err := <-ended; err != nil {
		t.Errorf("error %v", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("left in the state directory: %v, %v", list, err)
	}
}

func TestChildQuitsWithoutAParent(t *testing.T) {
	stacktest.NoLeaks(t)
	opaque := rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: t.TempDir()}).OpaqueForChild()
	for name, opaque := range map[string]map[string]string{"no socket yet": opaque, "another driver's": nil} {
		quit, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- newChild().RunChildDriver(opaque, quit, "") }()
		quit <- struct{}{} // blocks unless the driver is still there
		if err := <-ended; (err != nil) != (opaque == nil) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// What a killed run has left behind does not stop the next one, and strangers do not
// stop the child.
func TestStaleSocketAndOthers(t *testing.T) {
	stacktest.NoLeaks(t)
	dir := t.TempDir()
	d := rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: dir})
	opaque := d.OpaqueForChild()
	var path string
	for _, path = range opaque {
		if filepath.Dir(path) != dir {
			t.Errorf("the socket %s is not in the state directory", path)
		}
	}
	stale, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	quit, ended, ready := make(chan struct{}), make(chan error, 1), make(chan struct{})
	go func() { ended <- d.RunParentDriver(ready, quit, nil) }()
	c := startChild(t, childOrder{Opaque: opaque})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := d.RunParentDriver(make(chan struct{}), quit, nil); err == nil {
		t.Error("the driver was run twice")
	}
	quit <- struct{}{}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := c.stop(); err != nil {
		t.Errorf("the child: %v", err)
	}
}

// A message that is not the child's ends the start: the versions do not fit.
func TestWrongChild(t *testing.T) {
	stacktest.NoLeaks(t)
	d := rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: t.TempDir()})
	ended := make(chan error, 1)
	go func() { ended <- d.RunParentDriver(make(chan struct{}), make(chan struct{}), nil) }()
	var conn net.Conn
	for _, path := range d.OpaqueForChild() {
		deadline := time.Now().Add(patience)
		for conn == nil && time.Now().Before(deadline) {
			conn, _ = net.Dial("unixpacket", path)
		}
	}
	if conn == nil {
		t.Fatal("the parent does not listen")
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("postern ports 0")); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v, want one line", err)
	}
}

// A client of a port on which nothing listens is reset, after a moment in which the
// server may come.
func TestNobodyListens(t *testing.T) {
	stacktest.NoLeaks(t)
	r := run(t, false, nil)
	r.add(t, port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 20003, ChildPort: 80})
	for range 3 {
		began := time.Now()
		c, err := net.Dial("tcp", "127.0.0.1:20003")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(began.Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the client got %v, want ECONNRESET", err)
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("reset after %v: RootlessKit's own driver waits longer for a server", took)
		}
	}
}
