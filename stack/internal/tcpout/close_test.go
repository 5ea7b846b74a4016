package tcpout

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/stacktest"
)

// Close ends what is under way, whatever state it is in: a hanging dial, a
// handshake that nobody completes, an idle flow, one whose server does not read,
// a connection to the name service. Both sides are told, and nothing is left.
func TestCloseResetsEverything(t *testing.T) {
	for _, f := range families {
		r := newRig(t)
		r.dialer.Hang(f.another)
		servers := r.dialer.Serve(t, f.target)
		c := r.dial(t, f.inside, f.target)
		server := accepted(t, servers)
		blocked := r.dial(t, port(f.inside, 4001), f.target)
		accepted(t, servers)
		r.blockOutward(t, blocked)
		r.send(t, syn(port(f.inside, 4002), f.target))
		r.synAck(t, port(f.inside, 4002), f.target) // never completed
		r.send(t, syn(port(f.inside, 4003), f.another))
		stacktest.Eventually(t, "all flows", func() bool { return r.flows.Len(flow.TCP) == 4 && r.dialer.Calls(f.another) == 1 })

		r.close(t)
		if n := r.flows.Len(flow.TCP); n != 0 {
			t.Errorf("%s: %d flows left: %v", f.name, n, r.flows.Flows())
		}
		r.peer.ReceiveWhere(t, func(w stacktest.WireFrame) bool {
			return stacktest.IsTCP(w, stacktest.RST) && dstPort(w, f.inside.Addr().Is4()) == c.from.Port()
		})
		_ = server.SetReadDeadline(time.Now().Add(stacktest.Patience))
		if _, err := io.Copy(io.Discard, server); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the server sees %v", f.name, err)
		}
		// A SYN that comes late starts nothing.
		r.send(t, syn(port(f.inside, 4004), f.target))
		r.peer.ReceiveWhere(t, func(w stacktest.WireFrame) bool {
			return stacktest.IsTCP(w, stacktest.RST) && dstPort(w, f.inside.Addr().Is4()) == 4004
		})
		stacktest.Eventually(t, "the late flow to end", func() bool { return r.flows.Len(flow.TCP) == 0 })
	}
}

func dstPort(w stacktest.WireFrame, is4 bool) uint16 {
	at := 14 + 40 + 2
	if is4 {
		at = 14 + 20 + 2
	}
	return uint16(w.Bytes[at])<<8 | uint16(w.Bytes[at+1])
}
