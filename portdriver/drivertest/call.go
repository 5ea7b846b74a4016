package drivertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/postern-net/postern/userns/fdpass"
)

// patience bounds whatever ought to happen soon. It is no measure of speed: the
// machine may be busy with other tests.
const patience = 20 * time.Second

// helper is a process of ours and the socket on which it takes orders. It ends when
// the socket does.
type helper struct {
	mu   sync.Mutex // guards the socket: one order at a time
	conn *fdpass.Conn
	cmd  *exec.Cmd
}

// controlFD is a helper's end of the socket.
const controlFD = 3

// startHelper starts the test binary in a role. Its control socket is descriptor 3,
// files follow.
func startHelper(tb testing.TB, role string, change func(*exec.Cmd), files ...*os.File) *helper {
	tb.Helper()
	ours, theirs, err := fdpass.Pair()
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := fdpass.NewConn(ours)
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = environment(roleVariable + "=" + role)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	if change != nil {
		change(cmd)
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		tb.Fatalf("start the %s process: %v", role, err)
	}
	h := &helper{conn: conn, cmd: cmd}
	tb.Cleanup(func() { h.stop(tb, role) })
	return h
}

// stop ends the process and waits for it.
func (h *helper) stop(tb testing.TB, role string) {
	h.conn.Close()
	kill := time.AfterFunc(patience, func() { h.cmd.Process.Kill() })
	defer kill.Stop()
	if err := h.cmd.Wait(); err != nil {
		tb.Errorf("the %s process: %v", role, err)
	}
}

// answer is what a helper says to an order.
type answer struct {
	Error string
	Rule  int
}

// call gives an order and waits for the answer.
func (h *helper) call(order any) (answer, []*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	msg, err := json.Marshal(order)
	if err != nil {
		return answer{}, nil, err
	}
	if err := h.conn.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		return answer{}, nil, err
	}
	if err := h.conn.Send(msg); err != nil {
		return answer{}, nil, fmt.Errorf("give an order: %w", err)
	}
	buf := make([]byte, fdpass.MaxMessage)
	n, files, err := h.conn.Recv(buf)
	if err != nil {
		return answer{}, nil, fmt.Errorf("wait for the answer to an order: %w", err)
	}
	var a answer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return answer{}, files, err
	}
	if a.Error != "" {
		return a, files, errors.New(a.Error)
	}
	return a, files, nil
}

// serveOrders is a helper's loop: it carries out orders of type T until the suite
// closes its end.
func serveOrders[T any](do func(T) (answer, *os.File, error)) error {
	conn, err := fdpass.NewConn(os.NewFile(controlFD, "control"))
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, _, err := conn.Recv(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var order T
		if err := json.Unmarshal(buf[:n], &order); err != nil {
			return err
		}
		if err := carryOut(conn, do, order); err != nil {
			return err
		}
	}
}

func carryOut[T any](conn *fdpass.Conn, do func(T) (answer, *os.File, error), order T) error {
	a, file, err := do(order)
	if err != nil {
		a.Error = err.Error()
	}
	msg, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if file == nil {
		return conn.Send(msg)
	}
	defer file.Close()
	return conn.Send(msg, file)
}
