package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inst is a running instance.
type inst struct {
	account
	name   string
	cmd    *exec.Cmd
	stderr *lockedBuffer
	stdin  io.Closer
	// inside is what postern exec enters it by, if that is not its name.
	inside string
	// mayTalk says that the test gives postern a reason to say something.
	mayTalk bool
	ended   chan error
}

// start runs `postern run NAME` with a command that ends at the end of its input.
func (a account) start(t testing.TB, name string, flags ...string) *inst {
	t.Helper()
	args := append([]string{"run", "--name", name}, flags...)
	return a.begin(t, name, append(args, "--", "cat")...)
}

// begin runs postern and waits until the instance is published.
func (a account) begin(t testing.TB, name string, args ...string) *inst {
	t.Helper()
	return a.launch(t, name, a.postern(context.Background(), args...))
}

// launch is begin for a command that becomes postern.
func (a account) launch(t testing.TB, name string, cmd *exec.Cmd) *inst {
	t.Helper()
	i := &inst{account: a, name: name, cmd: cmd, stderr: &lockedBuffer{}, ended: make(chan error, 1)}
	i.cmd.Stderr = i.stderr
	pipe, err := i.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	i.stdin = pipe
	if err := i.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { i.ended <- i.cmd.Wait() }()
	t.Cleanup(func() { i.stop(t) })
	if err := eventually(patience, func() error { _, err := i.info(); return err }); err != nil {
		t.Fatalf("%s: %v\nstderr: %s", strings.Join(cmd.Args, " "), err, i.stderr)
	}
	return i
}

// stop ends the instance if it has not ended. It must have had nothing to say.
func (i *inst) stop(t testing.TB) {
	_ = i.stdin.Close()
	_ = i.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-i.ended:
	case <-time.After(patience):
		t.Errorf("instance %s does not end after SIGTERM", i.name)
		_ = i.cmd.Process.Kill()
		<-i.ended
	}
	i.ended <- nil // for a second call
	if said := uncalled(i.stderr.String()); said != "" && !i.mayTalk {
		t.Errorf("instance %s said: %s", i.name, said)
	} else if said != "" {
		t.Logf("instance %s said: %s", i.name, said)
	}
}

// wait returns how the instance's supervisor ended.
func (i *inst) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-i.ended:
		i.ended <- err
		return err
	case <-time.After(patience):
		t.Fatalf("instance %s does not end", i.name)
		return nil
	}
}

func (i *inst) dir() string { return filepath.Join(i.runtime, "postern", i.name) }

// instanceInfo is the part of instance.json that tests look at.
type instanceInfo struct {
	PID      int    `json:"pid"`
	ChildPID int    `json:"child_pid"`
	Endpoint string `json:"endpoint"`
}

func (i *inst) info() (info instanceInfo, err error) {
	b, err := os.ReadFile(i.dir() + "/instance.json")
	if err == nil {
		err = json.Unmarshal(b, &info)
	}
	return info, err
}

// exec runs a command in the instance's user and network namespace.
func (i *inst) exec(t testing.TB, command ...string) outcome {
	t.Helper()
	return i.execInput(t, nil, command...)
}

func (i *inst) execInput(t testing.TB, input []byte, command ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	cmd := i.postern(ctx, append([]string{"exec", i.name, "--"}, command...)...)
	cmd.Stdin = bytes.NewReader(input)
	return finish(cmd)
}

func (i *inst) mustExec(t testing.TB, command ...string) string {
	t.Helper()
	o := i.exec(t, command...)
	if o.code != 0 {
		t.Fatalf("postern exec %s -- %s: exit code %d\nstdout: %s\nstderr: %s", i.name, strings.Join(command, " "), o.code, o.out, o.err)
	}
	return o.out
}

// statusReport is the part of GET /v1/postern/status that tests look at.
type statusReport struct {
	EngineRestarts int               `json:"engineRestarts"`
	EngineReady    bool              `json:"engineReady"`
	EnginePID      int               `json:"enginePID"`
	Endpoint       string            `json:"endpoint"`
	Offloads       string            `json:"offloads"`
	Upstreams      []string          `json:"upstreams"`
	Counters       map[string]uint64 `json:"counters"`
}

// status asks the control socket.
func (i *inst) status() (s statusReport, err error) {
	err = i.report(&s)
	return s, err
}

// report puts the answer to GET /v1/postern/status into a struct.
func (i *inst) report(to any) error {
	status, answer, err := i.control().call(http.MethodGet, "/v1/postern/status", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, answer)
	}
	if err == nil {
		err = json.Unmarshal(answer, to)
	}
	return err
}

func (i *inst) mustStatus(t testing.TB) statusReport {
	t.Helper()
	s, err := i.status()
	if err != nil {
		t.Fatalf("control socket of %s: %v", i.name, err)
	}
	return s
}
