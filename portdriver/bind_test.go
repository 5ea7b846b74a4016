package portdriver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
)

// checkReceives sends a datagram to a listener and takes it out again.
func checkReceives(t *testing.T, l Listener) {
	t.Helper()
	c, err := net.Dial("udp", l.Bound.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "a datagram at "+l.Bound.String(), func() bool {
		var n int
		err := bind.Control(l.File, func(fd int) (err error) {
			n, _, err = unix.Recvfrom(fd, make([]byte, 10), 0)
			return err
		})
		return err == nil && n == 5
	})
}

// TestListeners checks what is bound, and to what it leads.
func TestListeners(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{})
	for _, tt := range []struct{ spec, want string }{
		{"8080:80", "tcp 127.0.0.1:8080>:80, tcp [::1]:8080>:80"},
		{"8080:80/udp", "udp 127.0.0.1:8080>:80, udp [::1]:8080>:80"},
		{"8081:80/tcp4", "tcp 127.0.0.1:8081>:80"},
		{"8081:80/tcp6", "tcp [::1]:8081>:80"},
		{"8082-8083:10.0.2.100:90-91/tcp", "tcp 127.0.0.1:8082>10.0.2.100:90, tcp 127.0.0.1:8083>10.0.2.100:91, " +
			"tcp [::1]:8082>10.0.2.100:90, tcp [::1]:8083>10.0.2.100:91"},
		{"0.0.0.0:8084:127.0.0.1:80/udp", "udp 0.0.0.0:8084>127.0.0.1:80"},
		{"[::]:8084:[::1]:80", "tcp [::]:8084>[::1]:80"},
		{"127.0.0.2:8085:unix:/c", "tcp 127.0.0.2:8085>/c"},
	} {
		var got []string
		for _, l := range add(t, r, tt.spec).Listeners {
			to := l.TargetPath
			switch {
			case l.Target.Addr().IsValid():
				to = l.Target.String()
			case to == "":
				to = fmt.Sprintf(":%d", l.Target.Port())
			}
			got = append(got, fmt.Sprintf("%s %v>%s", l.Network, l.Bound, to))
			checkSocket(t, l)
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.spec, s, tt.want)
		}
	}
	if l := add(t, r, "8090:80,proxy=v2").Listeners[0]; l.Proxy != 2 {
		t.Errorf("PROXY protocol %d", l.Proxy)
	}
}

// checkSocket checks a socket's address and options.
func checkSocket(t *testing.T, l Listener) {
	t.Helper()
	err := bind.Control(l.File, func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if got := bind.Address(sa); got != l.Bound {
			t.Errorf("bound to %v, want %v", got, l.Bound)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%v is blocking: %v", l.Bound, err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%v is for children too: %v", l.Bound, err)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	is6 := l.Bound.Addr().Is6()
	if is6 && option(t, l.File, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) != 1 {
		t.Errorf("%v takes IPv4", l.Bound)
	}
	info := option(t, l.File, unix.IPPROTO_IP, unix.IP_PKTINFO) == 1
	if is6 {
		info = option(t, l.File, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO) == 1
	}
	if udp := l.Network == NetUDP; udp != info || udp == (option(t, l.File, unix.SOL_SOCKET, unix.SO_ACCEPTCONN) == 1) {
		t.Errorf("%v %s: packet info %v", l.Network, l.Bound, info)
	}
}

// TestNotInPoller: clients must not wake this process too.
func TestNotInPoller(t *testing.T) {
	before := polled(t)
	r := newRegistry(t, Config{})
	add(t, r, "8080:80")
	add(t, r, "8080:80/udp")
	add(t, r, "unix:"+filepath.Join(t.TempDir(), "s")+":80")
	if after := polled(t); after != before {
		t.Errorf("the poller watches %d files, %d before", after, before)
	}
}

// polled counts the files that epoll instances of this process watch.
func polled(t *testing.T) (n int) {
	t.Helper()
	r, w, err := os.Pipe() // makes the runtime's own instance
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fds, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if b, err := os.ReadFile("/proc/self/fdinfo/" + fd.Name()); err == nil {
			n += strings.Count(string(b), "tfd:")
		}
	}
	if n == 0 {
		t.Fatal("no epoll instance found")
	}
	return n
}

func TestFreePort(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{})
	for _, text := range []string{"80", "80/udp", "127.0.0.1::80", "[::1]::80/udp", "0.0.0.0::80", "80/tcp6", "80-89", "53-62/udp"} {
		rule := add(t, r, text)
		first := rule.Spec.Host.Port
		if first == 0 || !strings.Contains(rule.Spec.String(), fmt.Sprint(first)) {
			t.Errorf("%s: %v", text, rule.Spec)
		}
		for i, l := range rule.Listeners {
			if want := first + uint16(i%rule.Spec.Count); l.Bound.Port() != want || l.Target.Port() != rule.Spec.Container.Port+uint16(i%rule.Spec.Count) {
				t.Errorf("%s: listener %d is %v to %v, want port %d", text, i, l.Bound, l.Target, want)
			}
			checkSocket(t, l)
		}
		refused(t, r, rule.Spec.String(), ErrConflict, fmt.Sprintf("rule %d", rule.ID))
	}
}

// TestFreePortCrowded: where the other family has most ports, one that both have is
// found; where it has all, that is said.
func TestFreePortCrowded(t *testing.T) {
	ns := nstest.New(t)
	r := newRegistry(t, Config{})
	ns.Do(t, func() error { return nstest.Sysctl("net/ipv4/ip_local_port_range", "40000 40019") })
	ns.Do(t, func() error {
		for port := 40000; port < 40020; port++ {
			if port != 40008 {
				f, err := bind.Inet(bind.TCP, netip.AddrPortFrom(netip.IPv6Loopback(), uint16(port)))
				if err != nil {
					return err
				}
				t.Cleanup(func() { f.Close() })
			}
		}
		rule, err := r.Add(parse(t, "80"))
		if err != nil || rule.Spec.Host.Port != 40008 {
			t.Errorf("%v, %v", rule, err)
		}
		refused(t, r, "80", ErrConflict, "no free port")
		refused(t, r, "80-99", ErrConflict, "no free 20 ports in a row")
		return nil
	})
}

// TestWithoutIPv6: a host without ::1 publishes on 127.0.0.1 alone.
func TestWithoutIPv6(t *testing.T) {
	ns := nstest.New(t)
	r := newRegistry(t, Config{})
	ns.Do(t, func() error {
		if err := nstest.Sysctl("net/ipv6/conf/all/disable_ipv6", "1"); err != nil {
			return err
		}
		for _, text := range []string{"8080:80", "8080-8089:80-89/udp", "81", "82-84"} {
			rule, err := r.Add(parse(t, text))
			if err != nil || len(rule.Listeners) != rule.Spec.Count || !rule.Listeners[0].Bound.Addr().Is4() {
				t.Errorf("%s: %v, %v", text, rule, err)
			}
		}
		refused(t, r, "[::1]:8081:80", unix.EADDRNOTAVAIL, "::1 is no address of this host")
		refused(t, r, "8081:80/tcp6", unix.EADDRNOTAVAIL, "::1 is no address of this host")
		return nil
	})
}

func TestBindErrors(t *testing.T) {
	r := newRegistry(t, Config{})
	refused(t, r, "192.0.2.99:8080:80", unix.EADDRNOTAVAIL, "tcp 192.0.2.99:8080", "192.0.2.99 is no address of this host")
	refused(t, r, "[fe80::1%nonesuch]:8080:80", unix.ENODEV, "nonesuch")
	dir := t.TempDir()
	refused(t, r, "unix:"+dir+"/none/s:80", fs.ErrNotExist, "no directory "+dir+"/none")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, r, "unix:"+file+":80", ErrConflict, "no socket")
	if _, err := os.Lstat(file); err != nil {
		t.Error(err)
	}
}

// TestOutOfDescriptors: the limit is named, nothing is left, and it works afterwards.
func TestOutOfDescriptors(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{})
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	refused(t, r, "8000-8099:1-100", unix.EMFILE, "RLIMIT_NOFILE is 64")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	add(t, r, "8000-8099:1-100")
}

// TestPrivileged: without CAP_NET_BIND_SERVICE the error says what can be done.
func TestPrivileged(t *testing.T) {
	r := newRegistry(t, Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread has lost its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
			return
		}
		refused(t, r, "81:80", unix.EACCES, "tcp 127.0.0.1:81", "ip_unprivileged_port_start is 1024",
			`"sysctl -w net.ipv4.ip_unprivileged_port_start=81"`, "fd:NAME:CTRPORT", "a port from 1024 on")
		if _, err := r.Add(parse(t, "1024:80")); err != nil {
			t.Error(err)
		}
	}()
	<-done
}

func TestUnix(t *testing.T) {
	noLeaks(t)
	r := newRegistry(t, Config{})
	name := filepath.Join(t.TempDir(), "s")
	rule := add(t, r, "unix:"+name+":10.0.2.100:80")
	if l := rule.Listeners[0]; len(rule.Listeners) != 1 || l.Network != NetUnix || l.Bound.IsValid() || l.Target.String() != "10.0.2.100:80" {
		t.Errorf("%+v", rule.Listeners)
	}
	if st, err := os.Lstat(name); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", st, err)
	}
	refused(t, r, "unix:"+name+":81", ErrConflict, "rule 1")
	other := newRegistry(t, Config{})
	refused(t, other, "unix:"+name+":81", ErrConflict, "unix socket "+name, "a process listens there")
	if err := r.Remove(1); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// containerSide listens "in the container", which here is this namespace.
type containerSide struct{ asked []string }

func (c *containerSide) listen(side Side) (*os.File, error) {
	c.asked = append(c.asked, side.text(1))
	if side.Path != "" {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: side.Path})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return l.File()
	}
	return bind.Inet(bind.TCP, netip.AddrPortFrom(side.Addr, side.Port))
}

func TestReverse(t *testing.T) {
	noLeaks(t)
	inside := &containerSide{}
	r := newRegistry(t, Config{Backend: newEngine(t), ContainerListener: inside.listen})
	name := filepath.Join(t.TempDir(), "in")
	for _, text := range []string{
		"reverse:unix:/h:5432", "reverse:unix:/h:0.0.0.0:5433", "reverse:unix:/h:5434/tcp6", "reverse:unix:/h:unix:" + name,
	} {
		rule := add(t, r, text)
		for _, l := range rule.Listeners {
			if !l.Reverse || l.TargetPath != "/h" || l.Target.IsValid() {
				t.Errorf("%s: %+v", text, l)
			}
			if l.Network == NetTCP {
				checkSocket(t, l)
			}
		}
	}
	if want := []string{"127.0.0.1:5432", "[::1]:5432", "0.0.0.0:5433", "[::1]:5434", "unix:" + name}; !slices.Equal(inside.asked, want) {
		t.Errorf("asked for %v, want %v", inside.asked, want)
	}
	refused(t, r, "reverse:unix:/x:127.0.0.1:5433", ErrConflict, "rule 2")
	occupy(t, "tcp", "[::1]:5435")
	refused(t, r, "reverse:unix:/x:5435", ErrConflict, "in the container on [::1]:5435")
	if err := r.Remove(1); err != nil {
		t.Fatal(err)
	}
	if reaches("tcp", "127.0.0.1:5432") {
		t.Error("the container's listener is left")
	}
	refused(t, newRegistry(t, Config{}), "reverse:unix:/h:80", ErrSpec, "nothing can listen")
}

// TestReverseWithoutIPv6: a container without ::1 has 127.0.0.1 alone.
func TestReverseWithoutIPv6(t *testing.T) {
	inside := &containerSide{}
	r := newRegistry(t, Config{ContainerListener: func(side Side) (*os.File, error) {
		if side.Addr.Is6() {
			return nil, fmt.Errorf("in there: %w", unix.EADDRNOTAVAIL)
		}
		return inside.listen(side)
	}})
	if rule := add(t, r, "reverse:unix:/h:5432"); len(rule.Listeners) != 1 {
		t.Error(rule)
	}
	refused(t, r, "reverse:unix:/h:[::1]:5433", unix.EADDRNOTAVAIL, "in there")
	refused(t, r, "reverse:unix:/h:5433/tcp6", unix.EADDRNOTAVAIL, "in there")
}

// TestContainerFamilies: an address of a family that the container lacks is refused,
// but for its loopback.
func TestContainerFamilies(t *testing.T) {
	r := newRegistry(t, Config{V4: true})
	refused(t, r, "8080:[fd00::100]:80", ErrSpec, "no address of the family of fd00::100")
	add(t, r, "8080:[::1]:80")
	add(t, r, "8081:10.0.2.100:80")
	r = newRegistry(t, Config{V6: true})
	refused(t, r, "8082:10.0.2.100:80", ErrSpec, "10.0.2.100")
	add(t, r, "8082:[fd00::100]:80")
}

// TestNormal: a spec put together by hand need not be in full.
func TestNormal(t *testing.T) {
	r := newRegistry(t, Config{})
	rule, err := r.Add(Spec{Host: Side{Addr: netip.MustParseAddr("::ffff:127.0.0.1"), Port: 8080}, Container: Side{Port: 80}})
	if err != nil || rule.Spec.String() != "127.0.0.1:8080:80/tcp" {
		t.Errorf("%v, %v", rule, err)
	}
	if _, err := r.Add(Spec{Host: Side{Port: 8081}}); !errors.Is(err, ErrSpec) {
		t.Error(err)
	}
}

// BenchmarkAdd is one port, on two addresses, added and removed.
func BenchmarkAdd(b *testing.B) {
	r := newRegistry(b, Config{})
	spec := parse(b, "8080:80")
	for b.Loop() {
		rule, err := r.Add(spec)
		if err == nil {
			err = r.Remove(rule.ID)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
