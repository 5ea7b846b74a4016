package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestNames asks for every kind of record as an ordinary client in the container
// does, over both transports.
func TestNames(t *testing.T) {
	dig := tool(t, "dig")
	cases := []struct {
		query string
		want  []string
	}{
		{"web.e2e.test A", []string{"status: NOERROR", "10.98.0.2"}},
		{"web.e2e.test AAAA", []string{"status: NOERROR", "fd98::2"}},
		{"alias.e2e.test A", []string{"CNAME", "web.e2e.test."}},
		{"text.e2e.test TXT", []string{`"some text" "more text"`}},
		{"mail.e2e.test MX", []string{"10 web.e2e.test."}},
		{"_http._tcp.e2e.test SRV", []string{"1 2 80 web.e2e.test."}},
		{"svc.e2e.test HTTPS", []string{`alpn="h2,h3" ipv4hint=10.98.0.2`}},
		{"odd.e2e.test TYPE65280", []string{`\# 4 CAFEF00D`}},
		{"nothere.e2e.test A", []string{"status: NXDOMAIN"}},
		{"web.e2e.test MX", []string{"status: NOERROR", "ANSWER: 0"}},
		{"broken.e2e.test A", []string{"status: SERVFAIL"}},
		{"gateway.postern.internal A", []string{"10.0.2.2"}},
		{"gateway.postern.internal AAAA", []string{"fd00::2"}},
		{"host.postern.internal AAAA", []string{host6}},
		{"host.containers.internal A", []string{host4}},
		{"host.docker.internal A", []string{host4}},
	}
	overAllWays(t, func(t *testing.T, a account, w way) {
		for _, server := range []string{"@10.0.2.3", "@fd00::3"} {
			for _, transport := range []string{"+notcp", "+tcp"} {
				var script strings.Builder
				for _, c := range cases {
					fmt.Fprintf(&script, "echo '== %s'; %s +tries=1 +time=20 %s %s %s\n", c.query, dig, transport, server, c.query)
				}
				parts := strings.Split(a.mustRun(t, w.flags(), "sh", "-c", script.String()), "== ")
				for n, c := range cases {
					for _, want := range c.want {
						if n+1 >= len(parts) || !strings.Contains(parts[n+1], want) {
							t.Errorf("dig %s %s %s: no %q in\n%s", transport, server, c.query, want, parts[min(n+1, len(parts)-1)])
						}
					}
				}
			}
		}
	})
}

// TestHostName: the host's name is the gateway when that leads to its loopback.
func TestHostName(t *testing.T) {
	out := ordinary(t).mustRun(t, []string{"--allow-host-loopback"}, probe(), "@lookup", "10.0.2.3", "A", "host.containers.internal", "1")
	if strings.TrimSpace(out) != "10.0.2.2" {
		t.Errorf("host.containers.internal: %q", out)
	}
}

// TestBigAnswer: an answer of 40 KiB is cut over UDP, and comes whole over TCP.
func TestBigAnswer(t *testing.T) {
	dig := tool(t, "dig")
	overAllWays(t, func(t *testing.T, a account, w way) {
		script := fmt.Sprintf("%[1]s +ignore +notcp big.e2e.test TXT; echo ==; %[1]s +short big.e2e.test TXT", dig)
		cut, whole, _ := strings.Cut(a.mustRun(t, w.flags(), "sh", "-c", script), "==\n")
		if !strings.Contains(cut, "flags: qr tc") && !strings.Contains(cut, " tc ") {
			t.Errorf("over UDP the answer is not marked as cut:\n%.2000s", cut)
		}
		records := map[string]bool{}
		for line := range strings.Lines(whole) {
			if len(strings.TrimSpace(line)) == 202 {
				records[line] = true
			}
		}
		if want := bigSize / 200; len(records) != want {
			t.Errorf("over TCP %d different records came, want %d", len(records), want)
		}
	})
}

// TestRebinding: a name that leads to the loopback leads to the container's own.
func TestRebinding(t *testing.T) {
	a := ordinary(t)
	b := newBanners(t)
	out := a.mustRun(t, nil, probe(), "@dial", "tcp", "rebind.e2e.test:"+b.wild)
	if !strings.Contains(out, "ECONNREFUSED") || b.count() != 0 {
		t.Errorf("connect: %s; the host's server saw %v", out, b.seen())
	}
}
