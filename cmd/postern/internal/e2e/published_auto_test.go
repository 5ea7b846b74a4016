package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// reached waits until a witness answers on the host's loopback, for both families if
// both is set, and logs the time.
func reached(t *testing.T, what, network, port string, both bool) {
	t.Helper()
	start := time.Now()
	for _, host := range loopbacks {
		if host == "::1" && !both {
			continue
		}
		err := eventually(patience, func() error {
			_, err := client{limit: 5 * time.Second}.ask(network, net.JoinHostPort(host, port))
			return err
		})
		if err != nil {
			t.Fatalf("%s: %s %s on %s: %v", what, network, port, host, err)
		}
	}
	t.Logf("%s: %s %s is there after %v", what, network, port, time.Since(start).Round(time.Millisecond))
}

// unreached waits until nothing listens on the host's port.
func unreached(t *testing.T, what, port string) {
	t.Helper()
	start := time.Now()
	err := eventually(patience, func() error {
		for _, host := range loopbacks {
			if conn, err := (client{}).dial("tcp", net.JoinHostPort(host, port)); err == nil {
				conn.Close()
				return fmt.Errorf("%s listens on %s still", port, host)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: %s is gone after %v", what, port, time.Since(start).Round(time.Millisecond))
}

// TestPublishAuto: what the container listens on appears on the host's loopback, and
// goes with it.
func TestPublishAuto(t *testing.T) {
	begin := map[string]func(t *testing.T, flags ...string) *inst{
		"run": func(t *testing.T, flags ...string) *inst { return ordinary(t).start(t, "auto", flags...) },
		"attach": func(t *testing.T, flags ...string) *inst {
			f := newForeign(t, ordinary(t))
			return f.attach(t, append(flags, f.pid())...)
		},
	}
	for mode, start := range begin {
		for _, driver := range []string{"splice", "netstack"} {
			t.Run(mode+"/"+driver, func(t *testing.T) {
				holder, err := net.Listen("tcp", "127.0.0.1:8003")
				if err != nil {
					t.Fatal(err)
				}
				defer holder.Close()
				i := start(t, "--endpoint", "packet", "--port-driver", driver, "--publish-auto=~8002")
				i.mayTalk = true // about the conflict
				followed(t, i, holder)
			})
		}
	}
}

func followed(t *testing.T, i *inst, holder net.Listener) {
	// Excluded, wanted, and taken on the host; the one that is seen last shows that
	// the others have been seen.
	end := i.witness(t, "tcp4,0.0.0.0:8002", "tcp4,0.0.0.0:8003", "tcp4,0.0.0.0:8001", "udp4,0.0.0.0:8001")
	reached(t, "started", "tcp", "8001", false)
	reached(t, "started", "udp", "8001", false)
	rules, err := i.control().rules()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if !r.Auto || !strings.Contains(r.Spec, "8001") {
			t.Errorf("rule %+v: want port 8001 only, by itself", r)
		}
	}
	if conn, err := (client{}).dial("tcp", "127.0.0.1:8002"); err == nil {
		conn.Close()
		t.Error("port 8002 is there, though excluded")
	}
	if err := eventually(patience, func() error {
		return failIf(!strings.Contains(i.stderr.String(), "8003"), "postern said: %s", i.stderr)
	}); err != nil {
		t.Errorf("the conflict is not told: %v", err)
	}
	_ = holder.Close()
	reached(t, "the conflict is over", "tcp", "8003", false)
	end()
	unreached(t, "stopped", "8001")
	unreached(t, "stopped", "8003")
	// Again, on IPv6 too.
	end = i.witness(t, "tcp,[::]:8001")
	reached(t, "started again", "tcp", "8001", true)
	end()
	unreached(t, "stopped again", "8001")
	if i.mustStatus(t).EngineRestarts != 0 {
		t.Error("the engine died")
	}
}
