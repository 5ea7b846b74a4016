package seam

import (
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
)

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fa, fb, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = New(fa); err != nil {
		t.Fatal(err)
	}
	if b, err = New(fb); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessagesAndFiles(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send(&handoff.AgentSetup{Propagation: "rprivate", Terminal: true}, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m, files, err := b.Recv()
	if setup, ok := m.(*handoff.AgentSetup); err != nil || !ok || !setup.Terminal || len(files) != 1 {
		t.Fatalf("Recv = %#v, %v, %v", m, files, err)
	}
	if _, err := files[0].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	CloseAll(files)
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Errorf("the pipe brought %q, %v", got, err)
	}
}

func TestConcurrentSends(t *testing.T) {
	a, b := pair(t)
	const senders, each = 8, 50
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for range each {
				if err := a.Send(&handoff.AgentReady{Notices: []string{"a notice"}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range senders * each {
		m, _, err := b.Recv()
		if ready, ok := m.(*handoff.AgentReady); err != nil || !ok || len(ready.Notices) != 1 {
			t.Fatalf("Recv = %#v, %v", m, err)
		}
	}
	wg.Wait()
}

func TestEnd(t *testing.T) {
	a, b := pair(t)
	if err := a.Send(&handoff.AgentKill{}); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if m, _, err := b.Recv(); err != nil || m == nil {
		t.Errorf("what was sent before the end: %v, %v", m, err)
	}
	if _, _, err := b.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv after the end: %v, want EOF", err)
	}
	// A peer that dies with messages unread resets the connection.
	c, d := pair(t)
	if err := c.Send(&handoff.AgentKill{}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, _, err := c.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv from a dead peer: %v, want EOF", err)
	}
}

func TestGarbageClosesFiles(t *testing.T) {
	fa, fb, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := fdpass.NewConn(fa)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	b, err := New(fb)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := raw.Send([]byte("not a message"), w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, _, err := b.Recv(); !errors.Is(err, handoff.ErrMalformed) {
		t.Errorf("Recv of garbage: %v", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the descriptor that came with it is still open: %v", err)
	}
}
