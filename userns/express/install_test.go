package express

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/rtnl"
)

// dump is everything that the path changes, as programs in there see it; the interface
// gets its link-local address at a time of its own.
const dump = `nft list ruleset; for f in -4 -6; do ip $f rule; ip $f route show table all | grep -v -e fe80: -e ff00:; done
	grep . /proc/sys/net/ipv4/conf/*/accept_local /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/tcp_congestion_control; ss -tuanH`

// works checks that flows go over, both protocols and families.
func (w *world) works(t *testing.T) {
	t.Helper()
	for _, remote := range []netip.AddrPort{remote4, remote6} {
		client, server, _ := w.hand(t, netip.AddrPort{}, remote)
		exchange(t, client, server, 1<<16)
		client.Close()
		server.Close()
		client2, ours := w.overUDP(t, remote)
		w.closeKeepingNumber(t, client2)
		w.closeKeepingNumber(t, ours)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.in(t, "nft add table ip other; nft add chain ip other c '{ type nat hook postrouting priority srcnat; }'; "+
		"nft add rule ip other c masquerade; echo $(tr ' ' '\\n' </proc/sys/net/ipv4/tcp_available_congestion_control | grep -v reno | head -n1) >/proc/sys/net/ipv4/tcp_congestion_control")
	before := w.in(t, dump)
	w.express(t)
	during := w.in(t, dump)
	contains(t, during, "table inet postern", "flags owner", "tproxy ip to 127.0.0.1:61051", "tproxy ip6 to [::1]:61051",
		"51:\tfrom all fwmark 0x1051/0x10ff lookup 20561", "local default dev lo table 20561", "tap0/accept_local:1",
		"reno", "127.0.0.1:61051", "[::1]:61051", "a SYN that the engine has dialled for", "table ip other")
	w.works(t)
	check(t, w.path.Repair())
	if again := w.in(t, dump); head(again) != head(during) {
		t.Errorf("Repair changed something:\n%s\nwant\n%s", again, during)
	}
	check(t, w.path.Close())
	if after := w.in(t, dump); head(after) != head(before) {
		t.Errorf("left over:\n%s\nwant\n%s", after, before)
	}
	check(t, w.path.Close()) // again
	if err := w.path.Repair(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Repair after Close: %v", err)
	}
}

// head is a dump without the sockets, which come and go.
func head(dump string) string {
	text, _, _ := strings.Cut(dump, "tcp_congestion_control:")
	return text
}

// What the container's root can destroy, Repair puts back; the table he cannot.
func TestRepair(t *testing.T) {
	needs(t, "nft", "ip", "ss")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	want := head(w.in(t, dump))
	for _, damage := range []string{
		"nft flush ruleset", "nft delete table inet postern 2>/dev/null || true",
		"ip rule del pref 51", "ip -6 rule del pref 51", "ip route flush table 20561; ip -6 route flush table 20561",
		"ip route replace unreachable default table 20561", "echo 0 >/proc/sys/net/ipv4/conf/tap0/accept_local",
		"ss -K state listening >/dev/null",
		"ip link set lo down", "ip link set lo down; ip -6 rule del pref 51; ip rule del pref 51; nft flush ruleset",
	} {
		t.Run(damage, func(t *testing.T) {
			w.in(t, damage)
			check(t, w.path.Repair())
			if got := head(w.in(t, dump)); sorted(got) != sorted(want) {
				t.Errorf("after %q:\n%s\nwant\n%s", damage, got, want)
			}
			w.works(t)
		})
	}
}

// The table without its owner's protection: kernels before 5.12, and what a killed
// supervisor of such a kernel leaves.
func TestTableOfAnOldKernel(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	want := w.path.plan()
	check(t, replace(w.path.nft, want, parts{nat: true}))
	if got := w.in(t, "nft list ruleset"); strings.Contains(got, "flags owner") {
		t.Errorf("it has an owner:\n%s", got)
	}
	w.works(t)
	w.in(t, "nft flush ruleset")
	check(t, w.path.Repair())
	w.works(t)
	// The next one takes what is left of this one.
	check(t, replace(w.path.nft, want, parts{nat: true}))
	check(t, w.path.Abandon())
	w.express(t)
	w.works(t)
}

// A second path is refused while the first one's owner lives, and takes over from one
// that is gone.
func TestInstallTwice(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	cfg := Config{Interface: "tap0", V4: container4, V6: container6, UDP: true}
	_, err := Install(w.target, cfg)
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.EPERM) {
		t.Errorf("second: %v", err)
	}
	unavailableLine(t, err)
	t.Log(err)
	w.works(t) // the refused one has taken nothing away
	check(t, w.path.Abandon())
	w.express(t)
	w.works(t)
}

func TestFamiliesAlone(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	for _, cfg := range []Config{{V4: container4}, {V6: container6}, {V4: container4, UDP: true}, {V6: container6, UDP: true}} {
		w := newWorld(t, endpoints[1])
		before := head(w.in(t, dump))
		cfg.Interface = "tap0"
		p, err := Install(w.target, cfg)
		check(t, err)
		w.path = p
		remote := remote4
		if cfg.V6.IsValid() {
			remote = remote6
		}
		if (p.TCP4 != nil) != cfg.V4.IsValid() || (p.TCP6 != nil) != cfg.V6.IsValid() ||
			(p.UDP4 != nil) != (cfg.V4.IsValid() && cfg.UDP) || (p.UDP6 != nil) != (cfg.V6.IsValid() && cfg.UDP) || p.Notice != "" {
			t.Errorf("%+v: %+v", cfg, p)
		}
		client, server, _ := w.hand(t, netip.AddrPort{}, remote)
		exchange(t, client, server, 1<<16)
		client.Close()
		if cfg.UDP {
			w.overUDP(t, remote)
		}
		check(t, p.Close())
		if after := head(w.in(t, dump)); after != before {
			t.Errorf("%+v: left over:\n%s\nwant\n%s", cfg, after, before)
		}
	}
}

// A family that cannot be served alone is left out, with a notice.
func TestIPv6Off(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.in(t, "for i in all default lo; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6 || exit; done")
	p, err := Install(w.target, Config{Interface: "tap0", V4: container4, V6: container6, UDP: true})
	check(t, err)
	defer p.Close()
	if p.TCP6 != nil || p.UDP6 != nil || p.TCP4 == nil || p.UDP4 == nil || !strings.Contains(p.Notice, "IPv6") || strings.Contains(p.Notice, "\n") {
		t.Errorf("%+v", p)
	}
	t.Log(p.Notice)
	w.path = p
	client, server, _ := w.hand(t, netip.AddrPort{}, remote4)
	exchange(t, client, server, 1<<16)
	check(t, p.Repair())
	_, err = Install(w.target, Config{Interface: "tap0", V6: container6})
	unavailableLine(t, err)
}

func unavailableLine(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrUnavailable) || !strings.HasPrefix(err.Error(), "express path: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want ErrUnavailable in one line", err)
	}
}

// Whatever the kernel lacks is named, and nothing is left behind. The kernel that these
// tests run on has everything, so its refusals are made up where they come from: in
// the names of what is asked for.
func TestUnavailable(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	before := head(w.in(t, dump))
	for _, cfg := range []Config{
		{}, {Interface: "tap0"}, {Interface: "tap1", V4: container4}, {Interface: "lo0", V4: container4, V6: container6},
	} {
		_, err := Install(w.target, cfg)
		unavailableLine(t, err)
		t.Log(err)
	}
	if after := head(w.in(t, dump)); after != before {
		t.Errorf("left over:\n%s\nwant\n%s", after, before)
	}
}

// A rule with a part that the kernel does not have.
func TestMissingParts(t *testing.T) {
	needs(t, "nft")
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	old := w.in(t, "nft list ruleset")
	for _, part := range []string{"ct", "tproxy"} {
		list := []rtnl.Request{anyTable(), delTable(), newTable(tableOwner), newChain(chainRaw), newChain(chainOut), newChain(chainIn)}
		op := ""
		for _, r := range w.path.plan().rules(parts{}) {
			q, err := newRule(r)
			check(t, err)
			if bytesReplace(q.Body, part+"\x00", "zz"+part[2:]+"\x00") && op == "" {
				op = q.Op
			}
			list = append(list, q)
		}
		err := rtnl.Batch(w.path.nft, transaction(list))
		refused, ok := errors.AsType[*rtnl.Error](err)
		if !ok || refused.Errno != unix.ENOENT || refused.Op != op || !strings.Contains(op, "nft_"+part) {
			t.Errorf("%s: %v, want ENOENT from %q", part, err, op)
		}
		if now := w.in(t, "nft list ruleset"); now != old {
			t.Errorf("the transaction has left something:\n%s", now)
		}
	}
	w.works(t)
}

// bytesReplace replaces in place.
func bytesReplace(b []byte, old, replacement string) bool {
	at := strings.Index(string(b), old)
	if at >= 0 {
		copy(b[at:], replacement)
	}
	return at >= 0
}

// sorted makes dumps comparable whose lines came about in another order.
func sorted(s string) string {
	l := strings.Split(s, "\n")
	slices.Sort(l)
	return strings.Join(l, "\n")
}

// Ports that somebody in there has are left to him.
func TestPortsTaken(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	for i, a := range []string{"127.0.0.1:61051", "0.0.0.0:61052", "[::1]:61051"} {
		at := netip.MustParseAddrPort(a)
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd := w.socket(t, at.Addr(), kind)
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, i&1))
			check(t, unix.Bind(fd, sockaddr(at)))
			if kind == unix.SOCK_STREAM {
				check(t, unix.Listen(fd, 1))
			}
		}
	}
	w.express(t)
	for f, want := range map[*os.File]string{
		w.path.TCP4: "127.0.0.1:61053", w.path.UDP4: "127.0.0.1:61053", w.path.TCP6: "[::1]:61052", w.path.UDP6: "[::1]:61052",
	} {
		sa, err := unix.Getsockname(int(f.Fd()))
		if err != nil || addrPort(sa).String() != want {
			t.Errorf("bound to %s, %v; want %s", addrPort(sa), err, want)
		}
	}
	w.works(t)
}

// Connections of published ports, told by their mark, are not tracked; others are.
func TestPublishedUntracked(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	w.in(t, "echo 1 >/proc/sys/net/ipv4/tcp_fwmark_accept")
	at := netip.MustParseAddrPort("127.0.0.1:80")
	listener := w.socket(t, at.Addr(), unix.SOCK_STREAM)
	check(t, unix.Bind(listener, sockaddr(at)))
	check(t, unix.Listen(listener, 1))
	tracked := func() string { return w.in(t, "cat /proc/sys/net/netfilter/nf_conntrack_count") }
	for _, marked := range []bool{true, false} {
		before := tracked()
		client := w.socket(t, at.Addr(), unix.SOCK_STREAM)
		if marked {
			check(t, unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_MARK, rtnl.PublishedMark))
		}
		if err := unix.Connect(client, sockaddr(at)); err != unix.EINPROGRESS {
			check(t, err)
		}
		if after := tracked(); (after == before) != marked {
			t.Errorf("marked %v: %q connections were tracked before, %q after", marked, before, after)
		}
	}
}

// Whoever connects to the listener itself is accepted with its own address as the
// destination, so that the engine can tell; so is a datagram.
func TestDirectConnection(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	for _, at := range []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:61051"), netip.MustParseAddrPort("[::1]:61051")} {
		w.connect(t, netip.AddrPort{}, at)
		fd, _, local := w.accept(t, at)
		unix.Close(fd)
		if local != at {
			t.Errorf("accepted as %s", local)
		}
		send(t, w.socket(t, at.Addr(), unix.SOCK_DGRAM), "hello", at)
		if got, _, to := receive(t, int(w.catchAll(at).Fd())); got != "hello" || to != at {
			t.Errorf("%q to %s", got, to)
		}
	}
}

// Sockets that others than us serve are nonblocking and not on our own poller, whose
// deadlines they therefore do not have.
func TestSocketsAreNotPolled(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[1])
	w.express(t)
	for name, f := range map[string]*os.File{"diag": w.path.Diag, "tcp4": w.path.TCP4, "tcp6": w.path.TCP6, "udp4": w.path.UDP4, "udp6": w.path.UDP6} {
		if err := f.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("%s is polled by the runtime (%v)", name, err)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s is blocking (%#x, %v)", name, flags, err)
		}
	}
}

// A namespace without inhabitants or interface is left at once and without an error.
func TestCloseInAnEmptyNamespace(t *testing.T) {
	usertest.AsUser(t)
	w := newWorld(t, endpoints[2])
	w.express(t)
	w.in(t, "true")
	check(t, rtnl.Batch(w.route, []rtnl.Request{{Op: "delete tap0", Kind: unix.RTM_DELLINK, Body: deleteLink("tap0")}}))
	w.end()
	begun := time.Now()
	check(t, w.path.Close())
	t.Log(time.Since(begun))
}

func deleteLink(name string) []byte {
	return rtnl.AppendAttribute(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, append([]byte(name), 0))
}

// Where /proc/sys is read-only, as in a container, only the congestion control stays
// what it is.
func TestReadOnlySysctls(t *testing.T) {
	const variable = "POSTERN_TEST_READONLY"
	if os.Getenv(variable) == "" {
		uid := os.Geteuid()
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestReadOnlySysctls$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			Pdeathsig:   unix.SIGKILL,
		}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	check(t, unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND|unix.MS_REC, ""))
	check(t, unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		t.Fatalf("/proc/sys can be written (%v)", err)
	}
	w := newWorld(t, endpoints[1])
	w.express(t)
	if w.path.congestion.file != nil {
		t.Error("the setting can be written")
	}
	w.works(t)
	check(t, w.path.Repair())
}
