package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/apisock/apitest"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/proto/api"
)

// noStatus is an instance that only has ports.
type noStatus struct{}

func (noStatus) Info(context.Context) (apisock.Info, error)     { return apisock.Info{}, nil }
func (noStatus) Status(context.Context) (apisock.Status, error) { return apisock.Status{}, nil }

// portsHost is a runtime directory with instances that have a control socket and
// no container.
type portsHost struct {
	t   *testing.T
	dir string
}

func newPortsHost(t *testing.T) portsHost {
	t.Helper()
	dir, err := os.MkdirTemp("", "pn") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return portsHost{t, dir}
}

// start starts an instance; ports may be nil.
func (h portsHost) start(name string, ports apisock.Ports) (socket string) {
	h.t.Helper()
	root, err := instance.Places{RuntimeDir: h.dir}.Root()
	if err != nil {
		h.t.Fatal(err)
	}
	d, _, err := instance.CreateNamed(root, name)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = d.Close() })
	s, err := apisock.Listen(d.Socket(), noStatus{}, ports)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Close)
	return d.Socket()
}

// run runs a command line, words with one space between, and returns what it printed.
func (h portsHost) run(line string) (code int, stdout, stderr string) {
	h.t.Helper()
	files := make([]*os.File, 2)
	for i := range files {
		f, err := os.CreateTemp(h.t.TempDir(), "")
		if err != nil {
			h.t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	code = run(h.t.Context(), strings.Split(line, " "), []string{"XDG_RUNTIME_DIR=" + h.dir}, stdio{nil, files[0], files[1]})
	var text [2]string
	for i, f := range files {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			h.t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			h.t.Fatal(err)
		}
		text[i] = string(b)
	}
	return code, text[0], text[1]
}

// expect runs a command line and compares all of its outcome.
func (h portsHost) expect(line string, code int, stdout, stderr string) {
	h.t.Helper()
	gotCode, gotOut, gotErr := h.run(line)
	if gotCode != code || gotOut != stdout || gotErr != stderr {
		h.t.Errorf("postern %s = %d\n%s%s\nwant %d\n%s%s", line, gotCode, gotOut, gotErr, code, stdout, stderr)
	}
}

func TestPorts(t *testing.T) {
	h := newPortsHost(t)
	h.start("one", &apitest.Ports{})
	h.expect("ports list", 0, "ID  FROM  TO  OPTIONS\n", "")
	h.expect("ports list --json", 0, "[]\n", "")
	h.expect("ports add 80 0.0.0.0:8000-8009:80-89/udp unix:/run/w.sock:80", 0,
		"1  127.0.0.1:40000, [::1]:40000 -> 80/tcp\n"+
			"2  0.0.0.0:8000-8009 -> 80-89/udp\n"+
			"3  unix:/run/w.sock -> 80/tcp\n", "")
	h.expect("ports list", 0, `ID  FROM                          TO         OPTIONS
1   127.0.0.1:40000, [::1]:40000  80/tcp     -
2   0.0.0.0:8000-8009             80-89/udp  -
3   unix:/run/w.sock              80/tcp     -
`, "")
	h.expect("ports add 81:81 127.0.0.1:8005:80/udp", 125, "",
		"postern: add ports: publish 127.0.0.1:8005:80/udp: the port is taken by rule 2\n")
	h.expect("ports remove 2 7 3", 125, "2\n3\n", "postern: remove port 7: remove rule 7: not found\n")
	h.expect("ports list --name one", 0, `ID  FROM                          TO      OPTIONS
1   127.0.0.1:40000, [::1]:40000  80/tcp  -
`, "")
	h.expect("__complete ports remove ", 0, "1\t127.0.0.1:40000, [::1]:40000 -> 80/tcp\n:4\n", "Completion ended with directive: ShellCompDirectiveNoFileComp\n")
}

func TestPortsJSON(t *testing.T) {
	h := newPortsHost(t)
	h.start("one", &apitest.Ports{})
	code, added, _ := h.run("ports add --json 8080:80 8081:[::1]:81/udp6")
	var ports []api.Port
	if err := json.Unmarshal([]byte(added), &ports); code != 0 || err != nil || len(ports) != 2 ||
		ports[1].Spec != "8081:[::1]:81/udp6" || !strings.HasSuffix(added, "]\n") {
		t.Errorf("ports add --json = %d, %v\n%s", code, err, added)
	}
	if _, listed, _ := h.run("ports list --json"); listed != added {
		t.Errorf("ports list --json differs from what add printed:\n%s", listed)
	}
}

// TestPortsInstance is how the instance is found.
func TestPortsInstance(t *testing.T) {
	h := newPortsHost(t)
	h.expect("ports list", 125, "", "postern: find an instance: none is running (name the --socket of one with a --state-dir of its own)\n")
	socket := h.start("two", &apitest.Ports{})
	h.start("one", nil)
	h.expect("ports list", 125, "", "postern: find an instance: 2 are running, one, two (choose one with --name)\n")
	h.expect("ports list --name two", 0, "ID  FROM  TO  OPTIONS\n", "")
	h.expect("ports list --socket "+socket, 0, "ID  FROM  TO  OPTIONS\n", "")
	h.expect("ports list --name three", 125, "", "postern: instance three: no such running instance (see postern ps)\n")
	h.expect("ports list --name one", 125, "", "postern: list ports: no PortDriver is available (the instance runs with --port-driver=none)\n")
	nowhere := filepath.Join(h.dir, "api.sock")
	h.expect("ports remove 1 --socket "+nowhere, 125, "",
		"postern: remove port 1: ask "+nowhere+": connect: no such file or directory (see postern ps for running instances)\n")
	if _, names, _ := h.run("__complete ports list --name "); !slices.Equal(strings.Fields(names), []string{"one", "two", ":4"}) {
		t.Errorf("completion of --name: %q", names)
	}
}
