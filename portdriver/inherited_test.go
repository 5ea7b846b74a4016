package portdriver

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/activation"
	"github.com/postern-net/postern/portdriver/internal/bind"
)

// inherit is a listener as activation.Take would return it.
func inherit(t *testing.T, name, network, where string, dual bool) activation.Inherited {
	t.Helper()
	in := activation.Inherited{Name: name, Network: network, Dual: dual}
	var err error
	switch {
	case network == "unix":
		in.Path = where
		in.File, _, err = bind.Unix(where)
	case dual:
		in.Addr = netip.MustParseAddrPort(where)
		in.File, err = dualStack(in.Addr.Port())
	default:
		in.Addr = netip.MustParseAddrPort(where)
		in.File, err = bind.Inet(network, in.Addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func inheriting(t *testing.T, list ...activation.Inherited) *Registry {
	t.Helper()
	for i := range list {
		list[i].Index = i
	}
	return newRegistry(t, Config{Backend: newEngine(t), Inherited: list})
}

// TestInheritedByName adds and removes rules of inherited listeners.
func TestInheritedByName(t *testing.T) {
	noLeaks(t)
	name := filepath.Join(t.TempDir(), "s")
	r := inheriting(t,
		inherit(t, "web", "tcp", "0.0.0.0:80", false), inherit(t, "web", "tcp", "[::]:80", false),
		inherit(t, "dns", "udp", "127.0.0.1:53", false), inherit(t, "sock", "unix", name, false))
	for range 3 {
		rule := add(t, r, "fd:web:8080,proxy=v1")
		if got := bounds(rule); len(got) != 2 || got[0].String() != "0.0.0.0:80" || got[1].String() != "[::]:80" {
			t.Errorf("bound %v", got)
		}
		if l := rule.Listeners[1]; l.Target.Port() != 8080 || l.Proxy != 1 || l.Network != NetTCP {
			t.Errorf("%+v", l)
		}
		refused(t, r, "fd:web:81", ErrConflict, "rule")
		refused(t, r, "fd:0:81", ErrConflict, "rule")
		refused(t, r, "127.0.0.1:80:81", ErrConflict, "rule")
		refused(t, r, "[::1]:80:81", ErrConflict, "rule")
		if err := r.Remove(rule.ID); err != nil {
			t.Fatal(err)
		}
		if !reaches("tcp", "127.0.0.1:80") || !reaches("tcp", "[::1]:80") {
			t.Error("the inherited listener has ended")
		}
	}
	if got := bounds(add(t, r, "fd:0:8080")); len(got) != 1 || got[0].String() != "0.0.0.0:80" {
		t.Errorf("number 0 is bound to %v", got)
	}
	refused(t, r, "fd:web:81", ErrConflict, "rule", "has inherited listener")
	if got := bounds(add(t, r, "fd:web:81/tcp6")); len(got) != 1 || got[0].String() != "[::]:80" {
		t.Errorf("tcp6 is bound to %v", got)
	}
	if l := add(t, r, "fd:dns:53/udp").Listeners[0]; l.Network != NetUDP {
		t.Errorf("%+v", l)
	} else {
		checkReceives(t, l)
	}
	if l := add(t, r, "fd:sock:80").Listeners[0]; l.Network != NetUnix || !reaches("unix", name) {
		t.Errorf("%+v", l)
	}
	refused(t, r, "unix:"+name+":81", ErrConflict, "rule")
}

func TestInheritedRefused(t *testing.T) {
	r := inheriting(t, inherit(t, "dns", "udp", "127.0.0.1:53", false), inherit(t, "sock", "unix", filepath.Join(t.TempDir(), "s"), false))
	refused(t, r, "fd:web:80", ErrNotFound, `"web"`, "2 came")
	refused(t, r, "fd:2:80", ErrNotFound)
	refused(t, r, "fd:dns:53", ErrSpec, "udp 127.0.0.1:53", "as tcp")
	refused(t, r, "fd:dns:53/udp6", ErrSpec, "as udp6")
	refused(t, r, "fd:sock:80/udp", ErrSpec, "a unix socket")
	refused(t, r, "fd:sock:80,proxy=v1", ErrSpec, "a unix socket", "PROXY protocol v1")
}

// TestInheritedByAddress: a spec finds the listener that is bound where it wants.
func TestInheritedByAddress(t *testing.T) {
	for _, tt := range []struct {
		network, bound string
		dual           bool
		spec           string
		want           []string // bound addresses; of them the first is the inherited one
	}{
		{"tcp", "127.0.0.1:80", false, "127.0.0.1:80:8080", []string{"127.0.0.1:80"}},
		{"tcp", "127.0.0.1:80", false, "80:8080", []string{"127.0.0.1:80", "[::1]:80"}},
		{"tcp", "0.0.0.0:80", false, "80:8080", []string{"0.0.0.0:80", "[::1]:80"}},
		{"tcp", "0.0.0.0:80", false, "0.0.0.0:80:8080", []string{"0.0.0.0:80"}},
		{"tcp", "0.0.0.0:80", false, "80:8080/tcp4", []string{"0.0.0.0:80"}},
		{"tcp", "[::]:80", true, "80:8080", []string{"[::]:80"}},
		{"tcp", "[::]:80", true, "0.0.0.0:80:8080", []string{"[::]:80"}},
		{"tcp", "[::]:80", true, "[::]:80:8080", []string{"[::]:80"}},
		{"tcp", "127.0.0.1:81", false, "127.0.0.1:80-82:1-3", []string{"127.0.0.1:80", "127.0.0.1:81", "127.0.0.1:82"}},
		{"udp", "0.0.0.0:53", false, "53:53/udp", []string{"0.0.0.0:53", "[::1]:53"}},
		{"udp", "127.0.0.1:53", false, "127.0.0.1:53:53/udp4", []string{"127.0.0.1:53"}},
	} {
		in := inherit(t, "x", tt.network, tt.bound, tt.dual)
		r := inheriting(t, in)
		for range 2 {
			rule := add(t, r, tt.spec)
			used := 0
			for i, l := range rule.Listeners {
				if i >= len(tt.want) || l.Bound.String() != tt.want[i] {
					t.Errorf("%s with %s: %v, want %v", tt.spec, tt.bound, bounds(rule), tt.want)
					break
				}
				if l.File == in.File {
					used++
				}
			}
			if used != 1 || len(rule.Listeners) != len(tt.want) {
				t.Errorf("%s with %s: used %d times, %v", tt.spec, tt.bound, used, bounds(rule))
			}
			if err := r.Remove(rule.ID); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
	}
}

// TestInheritedElsewhere: a listener that takes more than a spec asks for is not used,
// and is named when it is in the way.
func TestInheritedElsewhere(t *testing.T) {
	for _, tt := range []struct {
		bound string
		dual  bool
		spec  string
	}{
		{"0.0.0.0:80", false, "127.0.0.1:80:8080"},
		{"[::]:80", true, "80:8080/tcp4"},
		{"[::]:80", true, "[::1]:80:8080"},
	} {
		r := inheriting(t, inherit(t, "web", "tcp", tt.bound, tt.dual))
		refused(t, r, tt.spec, ErrConflict, `"web"`, "publish fd:web")
		add(t, r, "8080:80")
		r.Close()
	}
}

func dualStack(port uint16) (f *os.File, err error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)})
	}
	if err == nil {
		err = unix.Listen(fd, 10)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return bind.Hold(fd, "dual")
}
