package ocihook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

// state is one that a runtime could write.
const state = `{"ociVersion":"1.0","id":"c1","status":"created","pid":4711,"bundle":"/b","annotations":{"a":"b"},"root":"/b/rootfs"}`

func TestReadState(t *testing.T) {
	s, err := ReadState(strings.NewReader(state), CreateRuntime)
	if err != nil || s.ID != "c1" || s.Pid != 4711 || s.Bundle != "/b" || s.Annotations["a"] != "b" {
		t.Errorf("%+v, %v", s, err)
	}
	stopped := `{"ociVersion":"1.0.2-dev","id":"c1","status":"stopped","bundle":"/b"}`
	if _, err := ReadState(strings.NewReader(stopped), Poststop); err != nil {
		t.Error(err)
	}
	inside := strings.Replace(state, "4711", "0", 1) // crun's createContainer
	if _, err := ReadState(strings.NewReader(inside), CreateContainer); err != nil {
		t.Error(err)
	}
}

func TestReadStateRefuses(t *testing.T) {
	with := func(old, new string) string { return strings.Replace(state, old, new, 1) }
	for name, c := range map[string]struct{ text, want string }{
		"nothing":            {"", "empty"},
		"blanks":             {" \n", "empty"},
		"half":               {state[:40], "parse JSON"},
		"list":               {"[" + state + "]", "want an object"},
		"two":                {state + state, "parse JSON"},
		"null":               {"null", "want an object"},
		"deep":               {`{"id":` + strings.Repeat("[", 20000), "parse JSON"},
		"long":               {with(`"b"`, `"`+strings.Repeat("b", maxState)+`"`), "longer than"},
		"twice":              {with(`"id"`, `"id":"x","id"`), `"id" stands twice`},
		"in another case":    {with(`"pid"`, `"PID":1,"pid"`), `"pid" stands twice`},
		"no id":              {with(`"id":"c1",`, ""), "id"},
		"id is a path":       {with("c1", "../../etc"), "id"},
		"id is dots":         {with("c1", ".."), "id"},
		"id with newline":    {with("c1", `a\nb`), "id"},
		"id with NUL":        {with("c1", `a\u0000`), "id"},
		"id is long":         {with("c1", strings.Repeat("x", 256)), "id"},
		"id is a number":     {with(`"c1"`, "1"), "parse JSON"},
		"pid 0":              {with("4711", "0"), "pid 0"},
		"pid negative":       {with("4711", "-1"), "pid -1"},
		"pid huge":           {with("4711", "99999999"), "pid 99999999"},
		"pid above 64 bits":  {with("4711", "99999999999999999999"), "parse JSON"},
		"pid a fraction":     {with("4711", "1.5"), "parse JSON"},
		"pid a string":       {with("4711", `"4711"`), "parse JSON"},
		"relative bundle":    {with("/b", "b"), "bundle"},
		"no bundle":          {with(`"bundle":"/b",`, ""), "bundle"},
		"bundle with NUL":    {with(`"/b"`, `"/b\u0000"`), "bundle"},
		"long bundle":        {with(`"/b"`, `"/`+strings.Repeat("b", 5000)+`"`), "bundle"},
		"running":            {with(`"created"`, `"running"`), "status"},
		"stopped":            {with(`"created"`, `"stopped"`), "status"},
		"annotations a list": {with(`{"a":"b"}`, `["a"]`), "parse JSON"},
		"annotation numbers": {with(`"b"`, `1`), "parse JSON"},
	} {
		_, err := ReadState(strings.NewReader(c.text), CreateRuntime)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := ReadState(errorReader{}, CreateRuntime); !errors.Is(err, unix.EIO) {
		t.Errorf("unreadable: %v", err)
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, unix.EIO }

func FuzzParseState(f *testing.F) {
	f.Add([]byte(state))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseState(text)
		if err != nil || check(s, CreateRuntime) != nil {
			return
		}
		for _, name := range ContainerOf(s, "/r").names() {
			if err := instance.CheckName(name); err != nil {
				t.Fatalf("id %q: %v", s.ID, err)
			}
		}
	})
}

func TestNames(t *testing.T) {
	for id, want := range map[string]string{
		"web": "web web-", "Web": "web-", "a+b": "a.b-", "_x": "x-", "--": "oci-", "0": "0 0-",
		strings.Repeat("x", 63): strings.Repeat("x", 63) + " " + strings.Repeat("x", 54) + "-",
		strings.Repeat("x", 90): strings.Repeat("x", 54) + "-",
	} {
		names := (Container{ID: id, Bundle: "/b"}).names()
		var got []string
		for i, name := range names {
			if err := instance.CheckName(name); err != nil {
				t.Errorf("%q: %v", id, err)
			}
			if i == len(names)-1 {
				name = name[:len(name)-8]
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", id, names, want)
		}
	}
	one, two := Container{ID: "a", Bundle: "/b"}, Container{ID: "a", Bundle: "/c"}
	if one.names()[1] == two.names()[1] {
		t.Error("containers of two bundles share a name")
	}
}

func TestOwnAddress(t *testing.T) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	seen := make(map[netip.Addr]bool)
	for n := range 1000 {
		c := Container{ID: fmt.Sprint("c", n), Bundle: "/b"}
		a := c.OwnAddress(0)
		b := a.As4()
		if !loopback.Contains(a) || b[1] == 0 || b[3] == 0 || b[3] == 255 || a != c.OwnAddress(0) || a == c.OwnAddress(1) {
			t.Errorf("%s: %v", c.ID, a)
		}
		seen[a] = true
	}
	if len(seen) < 999 {
		t.Errorf("%d addresses for 1000 containers", len(seen))
	}
}

func TestBound(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0403027F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 1 1 0 100 0 0 10 0
   1: 0903027F:18EB 0100007F:9C40 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   2: short`
	for addr, want := range map[string][2]bool{"127.2.3.4": {true, true}, "127.2.3.9": {false, true}, "127.2.3.5": {false, false}} {
		a := netip.MustParseAddr(addr)
		if got := [2]bool{bound(strings.NewReader(table), a, "tcp"), bound(strings.NewReader(table), a, "udp")}; got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	j, err := OpenJournal(file, path)
	if err != nil {
		t.Fatal(err)
	}
	line := bytes.Repeat([]byte("x"), 1<<16)
	for range 40 { // more than there is room for, and nobody must wait
		if _, err := j.File().Write(line); err != nil {
			t.Fatal(err)
		}
	}
	j.Close(false)
	if info, err := os.Stat(path); err != nil || info.Size() < maxJournal || info.Size() > maxJournal+100 {
		t.Errorf("%v, %v", info, err)
	}
	if j, err = OpenJournal(file, path); err != nil {
		t.Fatal(err)
	}
	j.Close(true)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a server that ended well: %v", err)
	}
}

// TestHandover: the namespaces of this process, brought to a server in it, are its
// own, which the server refuses; another container's it refuses for that.
func TestHandover(t *testing.T) {
	files := t.TempDir()
	c := Container{ID: "c1", Bundle: "/b"}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	life := os.NewFile(uintptr(self), "pidfd")
	defer life.Close()
	if waited, err := c.bring(files); waited || err != nil {
		t.Fatalf("nobody waits: %v, %v", waited, err)
	}
	h, err := c.Listen(files, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	got := make(chan error, 1)
	go func() {
		_ = h.listener.SetDeadline(time.Now().Add(readyWithin))
		for range 2 {
			conn, err := h.listener.AcceptUnix()
			if err != nil {
				got <- err
				return
			}
			_, err = h.take(conn)
			_, _ = conn.Write([]byte(Failed + err.Error()))
			conn.Close()
		}
		got <- nil
	}()
	if waited, err := c.bring(files); !waited || err == nil || err.Error() != errHostNetwork.Error() {
		t.Errorf("our own namespaces: %v, %v", waited, err)
	}
	other := Container{ID: "c1", Bundle: "/other"}
	if waited, err := other.bring(files); !waited || err == nil || !strings.Contains(err.Error(), "container c1 in /b") {
		t.Errorf("another container's: %v, %v", waited, err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	h.Close()
	if left, _ := os.ReadDir(files); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestHandoverEnds: a server does not outlive the container that it waits for.
func TestHandoverEnds(t *testing.T) {
	r, w, err := os.Pipe() // stands for a pidfd: readable when the other side is gone
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := (Container{ID: "c1", Bundle: "/b"}).Listen(t.TempDir(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	_ = w.Close()
	if _, err := h.Wait(r); !errors.Is(err, ErrEnded) {
		t.Errorf("Wait = %v, want ErrEnded", err)
	}
}

func TestLeaveError(t *testing.T) {
	dir := t.TempDir()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	read := func() string {
		b, _ := os.ReadFile(filepath.Join(dir, ErrorFile))
		return string(b)
	}
	LeaveError(dir, null, io.ErrUnexpectedEOF)
	if got := read(); got != "postern: unexpected EOF\n" {
		t.Errorf("%q", got)
	}
	LeaveError(dir, null, nil)
	LeaveError(dir, os.Stderr, io.EOF)
	if st, err := os.Stderr.Stat(); err == nil && st.Mode()&os.ModeCharDevice == 0 && read() != "" {
		t.Errorf("left although standard error is somewhere: %q", read())
	}
	LeaveError("", null, io.EOF)
	LeaveError(dir+"/none", null, io.EOF)
}
