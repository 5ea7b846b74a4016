package supervisor

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/userns/join"
)

func TestDeaths(t *testing.T) {
	var d deaths
	var pauses []time.Duration
	for range maxQuickDeaths - 1 {
		pause, again := d.next(time.Second)
		if !again {
			t.Fatalf("gave up after %v", pauses)
		}
		pauses = append(pauses, pause)
	}
	if want := []time.Duration{0, firstPause, 2 * firstPause, 4 * firstPause}; !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
	// A replacement is there within a second even after the longest pause.
	if last := pauses[len(pauses)-1]; last > time.Second/2 {
		t.Errorf("the last pause is %s", last)
	}
	if _, again := d.next(time.Second); again {
		t.Error("never gives up")
	}
	if pause, again := d.next(quick); !again || pause != 0 {
		t.Errorf("after a long life: %s, %v; want an immediate restart", pause, again)
	}
}

func TestRevivals(t *testing.T) {
	var r revivals
	last := time.Duration(0)
	for n := range 1000 {
		pause := r.next(time.Second)
		if pause < last || pause > maxRevival || n == 0 && pause != firstRevival {
			t.Fatalf("pause %d is %s after %s", n, pause, last)
		}
		last = pause
	}
	if last != maxRevival {
		t.Errorf("pauses end at %s, want %s", last, maxRevival)
	}
	if pause := r.next(quick); pause != firstRevival {
		t.Errorf("after a long life: %s, want %s", pause, firstRevival)
	}
}

func TestUpstreams(t *testing.T) {
	host := dns.ResolvConf{Nameservers: []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("fe80::1%eth0")}}
	got := upstreams(&Config{}, host)
	if len(got) != 2 || got[0].String() != "127.0.0.53:53" || got[1].String() != "[fe80::1%eth0]:53" {
		t.Errorf("upstreams = %v", got)
	}
	own := upstreams(&Config{DNS: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, host)
	if len(own) != 1 || own[0].String() != "192.0.2.1:53" {
		t.Errorf("with --dns: %v", own)
	}
	if none := upstreams(&Config{}, dns.ResolvConf{}); len(none) != 0 {
		t.Errorf("a host without servers: %v; there is no public fallback", none)
	}
}

func TestContainerFiles(t *testing.T) {
	cfg := &Config{Plan: netplan.Default()}
	host := dns.ResolvConf{Search: []string{"corp.example"}, Options: []string{"ndots:2"}}
	text := string(resolvConf(cfg, host))
	for _, want := range []string{"nameserver 10.0.2.3\n", "nameserver fd00::3\n", "search corp.example\n", "options ndots:2\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("resolv.conf lacks %q:\n%s", want, text)
		}
	}
	cfg.DNSSearch = []string{"own.example"}
	if text := string(resolvConf(cfg, host)); !strings.Contains(text, "search own.example\n") || strings.Contains(text, "corp") {
		t.Errorf("--dns-search does not win:\n%s", text)
	}
	cfg.Plan.V6 = netplan.Family{}
	if text := string(resolvConf(cfg, host)); strings.Contains(text, "fd00") {
		t.Errorf("IPv6 is off, but:\n%s", text)
	}
	hosts := string(hostsFile(netplan.Default(), "box"))
	if want := "10.0.2.100\tbox\nfd00::100\tbox\n"; !strings.HasSuffix(hosts, want) || !strings.HasPrefix(hosts, "127.0.0.1\tlocalhost\n") {
		t.Errorf("hosts:\n%s", hosts)
	}
	if hosts := string(hostsFile(netplan.Default(), "localhost")); strings.Contains(hosts, "10.0.2.100") {
		t.Errorf("localhost is not loopback:\n%s", hosts)
	}
}

func TestNoIPv6(t *testing.T) {
	here := t.TempDir()
	if why := noIPv6(1280, here); why != "" {
		t.Errorf("MTU 1280: %s", why)
	}
	if why := noIPv6(1279, here); !strings.Contains(why, "1279") {
		t.Errorf("MTU 1279: %q", why)
	}
	if why := noIPv6(1500, filepath.Join(here, "gone")); !strings.Contains(why, "kernel") {
		t.Errorf("no /proc/sys/net/ipv6: %q", why)
	}
}

func TestPrepareRefusesNothingLeft(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := prepare(&Config{MTU: 1500, Stderr: null}); err == nil {
		t.Error("a plan without any family was accepted")
	}
}

func TestWaitFD(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	hup, err := waitFD(r, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hup.close()
	idle, err := waitFD(r, 0)
	if err != nil {
		t.Fatal(err)
	}
	idle.close() // before anything happened
	if _, err := w.WriteString("data is not the end"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hup.C():
		t.Fatal("fired on data")
	case <-time.After(20 * time.Millisecond):
	}
	w.Close()
	select {
	case <-hup.C():
	case <-time.After(10 * time.Second):
		t.Fatal("did not fire on hang-up")
	}
	if (*fdWait)(nil).C() != nil {
		t.Error("a nil wait has a channel")
	}
	(*fdWait)(nil).close()
}

// TestConfigureWithoutEngine: an engine that dies before there is an endpoint is
// no failure; the next one is configured when it is due.
func TestConfigureWithoutEngine(t *testing.T) {
	n := newNetwork(&Config{}, slog.New(slog.DiscardHandler))
	n.endpoint = endpoint{kind: handoff.TAP}
	if err := n.configure(); err != nil || n.state().kind != handoff.TAP {
		t.Errorf("configure = %v, kind %q", err, n.state().kind)
	}
}

// TestOnlyFirstNetNS: a network namespace that comes when there is one already, as
// from an agent that the command has taken over, changes nothing.
func TestOnlyFirstNetNS(t *testing.T) {
	target, err := join.OpenPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	n := newNetwork(&Config{}, slog.New(slog.DiscardHandler))
	n.target = target
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	s := &session{net: n}
	if err := s.agentEvent(agentEvent{message: &handoff.AgentNetNS{}, files: []*os.File{f}}); err != nil || n.target != target {
		t.Errorf("a second network namespace was taken: %v", err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("its descriptor stays open (%v)", err)
	}
	n.target = nil
	if err := s.agentEvent(agentEvent{message: &handoff.AgentNetNS{}}); err == nil {
		t.Error("a message without a descriptor was taken")
	}
}

func TestErrnoOf(t *testing.T) {
	err := &os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.EACCES}
	if got := errnoOf(err); got != unix.EACCES {
		t.Errorf("errnoOf = %v", got)
	}
}
