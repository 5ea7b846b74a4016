package join

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/spawn"
)

// Whoever owns the user namespace can do with the sockets what takes capabilities in
// there, from outside.
func TestMake(t *testing.T) {
	usertest.AsUser(t)
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	list := []Socket{
		{"make a TCP socket", unix.AF_INET, unix.SOCK_STREAM, 0},
		{"make a UDP socket", unix.AF_INET6, unix.SOCK_DGRAM, 0},
		{"open an nfnetlink socket", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
	}
	for _, sysctls := range [][]string{
		nil, {"ipv4/ip_forward"}, {"ipv4/no_such_setting"}, {"ipv4/tcp_ecn", "ipv4/no_such_setting", "ipv4/ip_forward"},
	} {
		files, settings, err := target.Make(list, sysctls...)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range files {
			domain, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_DOMAIN)
			if err != nil || domain != list[i].Domain {
				t.Errorf("socket %d is of domain %d, %v", i, domain, err)
			}
		}
		if err := unix.SetsockoptInt(int(files[0].Fd()), unix.SOL_SOCKET, unix.SO_MARK, 1); err != nil {
			t.Errorf("set a mark from outside: %v", err)
		}
		for i, name := range sysctls {
			setting := settings[i]
			if there := name != "ipv4/no_such_setting"; (setting != nil) != there {
				t.Fatalf("%q: %v", name, setting)
			}
			if name != "ipv4/ip_forward" {
				continue
			}
			if _, err := setting.WriteAt([]byte("1"), 0); err != nil {
				t.Errorf("write a sysctl from outside: %v", err)
			}
			if got := output(t, target, shell("cat /proc/sys/net/ipv4/ip_forward")); got != "1\n" {
				t.Errorf("it is %q in there", got)
			}
		}
		rawfork.CloseAll(append(files, settings...))
	}
	_, _, err := target.Make([]Socket{{"make a socket of nobody's", 45, unix.SOCK_STREAM, 0}})
	if !errors.Is(err, ErrNoSocket) || !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("a domain that there is not: %v", err)
	}
}
