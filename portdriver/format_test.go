package portdriver

import (
	"net/netip"
	"testing"
)

func TestRuleString(t *testing.T) {
	for _, tt := range []struct {
		spec, bound1, bound2, want string
	}{
		{"8080:80", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8080, [::1]:8080 -> 80/tcp"},
		{"8000-8001:10.0.2.100:80-81/udp", "127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8000-8001 -> 10.0.2.100:80-81/udp"},
		{"8080:unix:/c", "127.0.0.1:8080", "", "127.0.0.1:8080 -> unix:/c"},
		{"fd:web:80", "0.0.0.0:80", "", "0.0.0.0:80 -> 80/tcp"},
		{"unix:/h:80", "", "", "unix:/h -> 80/tcp"},
		{"reverse:unix:/h:80", "127.0.0.1:80", "[::1]:80", "container 127.0.0.1:80, [::1]:80 -> unix:/h"},
		{"reverse:unix:/h:unix:/c", "", "", "container unix:/c -> unix:/h"},
	} {
		r := Rule{Spec: parse(t, tt.spec)}
		for _, bound := range []string{tt.bound1, tt.bound2} {
			if bound != "" {
				r.Listeners = append(r.Listeners, Listener{Bound: netip.MustParseAddrPort(bound)})
			}
		}
		if got := r.String(); got != tt.want {
			t.Errorf("%s is %q, want %q", tt.spec, got, tt.want)
		}
	}
}
