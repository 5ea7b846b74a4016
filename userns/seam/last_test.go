package seam

import (
	"testing"

	"github.com/postern-net/postern/proto/handoff"
)

// A peer's last message arrives though it ended without reading ours.
func TestLastMessageOfAPeerThatDidNotRead(t *testing.T) {
	a, b := pair(t)
	if err := a.Send(&handoff.AgentExited{Code: 7}); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(&handoff.AgentSignal{Signal: 15}); err != nil {
		t.Fatal(err)
	}
	a.Close()
	m, _, err := b.Recv()
	if exited, ok := m.(*handoff.AgentExited); err != nil || !ok || exited.Code != 7 {
		t.Fatalf("Recv = %#v, %v", m, err)
	}
	if _, _, err := b.Recv(); err == nil {
		t.Error("no end after the last message")
	}
}
