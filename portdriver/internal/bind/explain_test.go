package bind

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplain(t *testing.T) {
	at := netip.MustParseAddrPort("[::1]:80")
	for _, tt := range []struct {
		err   error
		words []string
	}{
		{unix.EADDRINUSE, []string{"held by a process that /proc does not show"}}, // nobody has it
		{unix.EACCES, []string{"ip_unprivileged_port_start=80"}},
		{unix.EADDRNOTAVAIL, []string{"::1 is no address of this host"}},
		{unix.EAFNOSUPPORT, []string{"no IPv6"}},
		{unix.EMFILE, []string{"RLIMIT_NOFILE is "}},
		{unix.ENFILE, []string{"fs.file-max"}},
		{unix.ENOBUFS, nil},
	} {
		got := Explain(TCP, at, fmt.Errorf("bind: %w", tt.err))
		if !errors.Is(got, tt.err) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%v: %v", tt.err, got)
		}
		for _, w := range append(tt.words, "listen on tcp [::1]:80: bind: ") {
			if !strings.Contains(got.Error(), w) {
				t.Errorf("%v says nothing of %q", got, w)
			}
		}
	}
	// Not every EACCES is about privileged ports.
	if got := Explain(TCP, netip.MustParseAddrPort("127.0.0.1:1024"), unix.EACCES); strings.Contains(got.Error(), "sysctl") {
		t.Error(got)
	}
}

func TestZone(t *testing.T) {
	for zone, want := range map[string]uint32{"": 0, "lo": 1, "7": 7} {
		if got, err := zoneID(zone); err != nil || got != want {
			t.Errorf("%q is %d, %v", zone, got, err)
		}
	}
	for _, zone := range []string{"nonesuch", "0", "-1", "99999999999"} {
		if got, err := zoneID(zone); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%q is %d, %v", zone, got, err)
		}
	}
	at := Address(&unix.SockaddrInet6{Addr: netip.MustParseAddr("fe80::1").As16(), Port: 5, ZoneId: 1})
	if at.String() != "[fe80::1%lo]:5" {
		t.Error(at)
	}
	if at := Address(&unix.SockaddrUnix{}); at.IsValid() {
		t.Error(at)
	}
}
