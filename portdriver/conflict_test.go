package portdriver

import "testing"

func TestConflict(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"8080:80", "8080:81", true},
		{"8080:80", "8081:80", false},
		{"8080:80", "8080:80/udp", false},
		{"8080:80/udp", "8080:81/udp", true},
		{"80", "80", false},
		{"80", "8080:80", false},

		// No address is both loopbacks, or the one of the protocol's family.
		{"8080:80", "127.0.0.1:8080:80", true},
		{"8080:80", "[::1]:8080:80", true},
		{"8080:80", "127.0.0.2:8080:80", false},
		{"8080:80/tcp4", "8080:80/tcp6", false},
		{"8080:80", "8080:80/tcp4", true},
		{"8080:80/tcp6", "8080:80", true},
		{"8080:80/tcp4", "[::1]:8080:80", false},
		{"8080:80/udp4", "8080:80/udp", true},

		// The unspecified address is all of its family only.
		{"0.0.0.0:8080:80", "127.0.0.1:8080:80", true},
		{"0.0.0.0:8080:80", "192.0.2.1:8080:80/tcp4", true},
		{"0.0.0.0:8080:80", "0.0.0.0:8080:81", true},
		{"0.0.0.0:8080:80", "8080:80", true},
		{"0.0.0.0:8080:80", "8080:80/tcp6", false},
		{"0.0.0.0:8080:80", "[::]:8080:80", false},
		{"0.0.0.0:8080:80", "[::1]:8080:80", false},
		{"[::]:8080:80", "[::1]:8080:80", true},
		{"[::]:8080:80", "127.0.0.1:8080:80", false},
		{"[::]:8080:80", "8080:80", true},
		{"[::]:8080:80", "[fe80::1%eth0]:8080:80", true},
		{"0.0.0.0:8080:80/udp", "127.0.0.1:8080:80/udp", true},
		{"0.0.0.0:8080:80", "0.0.0.0:8080:80/udp", false},
		{"192.0.2.1:8080:80", "192.0.2.2:8080:80", false},
		{"[fe80::1%eth0]:8080:80", "[fe80::1%eth1]:8080:80", false},
		{"[::ffff:127.0.0.1]:8080:80", "127.0.0.1:8080:80", true},

		// Ranges.
		{"8000-8010:80-90", "8010:80", true},
		{"8000-8010:80-90", "8011:80", false},
		{"8000-8010:80-90", "8005-8020:80-95", true},
		{"8000-8010:80-90", "7999:80", false},
		{"1-65535:1-65535", "65535:1", true},
		{"0.0.0.0:8000-8010:80-90", "127.0.0.1:8003-8004:1-2", true},
		{"0.0.0.0:8000-8010:80-90", "127.0.0.1:8003-8004:1-2/udp", false},

		// Other kinds of listeners.
		{"unix:/a:80", "unix:/a:81", true},
		{"unix:/a:80", "unix:/x/../a:81", true},
		{"unix:/a:80", "unix:/b:80", false},
		{"unix:/a:80", "8080:unix:/a", false},
		{"8080:unix:/a", "8080:80", true},
		{"8080:unix:/a", "8081:unix:/a", false},
		{"fd:web:80", "fd:web:81", true},
		{"fd:web:80", "fd:web:81/udp", false},
		{"fd:web:80", "fd:dns:80", false},
		{"fd:web:80", "8080:80", false},

		// The container's side is another place.
		{"reverse:unix:/a:80", "reverse:unix:/b:80", true},
		{"reverse:unix:/a:80", "reverse:unix:/a:81", false},
		{"reverse:unix:/a:80", "80:80", false},
		{"reverse:unix:/a:0.0.0.0:80", "reverse:unix:/b:80", true},
		{"reverse:unix:/a:0.0.0.0:80", "reverse:unix:/b:[::1]:80", false},
		{"reverse:unix:/a:80/tcp4", "reverse:unix:/b:80/tcp6", false},
		{"reverse:unix:/a:unix:/c", "reverse:unix:/b:unix:/c", true},
		{"reverse:unix:/a:unix:/c", "unix:/c:80", false},
	} {
		a, b := parse(t, tt.a), parse(t, tt.b)
		if got := Conflict(a, b); got != tt.want {
			t.Errorf("Conflict(%s, %s) is %v", tt.a, tt.b, got)
		}
		if got := Conflict(b, a); got != tt.want {
			t.Errorf("Conflict(%s, %s) is %v, the other way round", tt.b, tt.a, got)
		}
	}
}

func parse(tb testing.TB, text string) Spec {
	tb.Helper()
	s, err := ParseSpec(text)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}
