package portdriver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// want is a Spec in fewer words.
func want(proto Proto, host, container Side, change ...func(*Spec)) Spec {
	s := Spec{Proto: proto, Host: host, Container: container, Count: 1}
	for _, c := range change {
		c(&s)
	}
	return s
}

func at(addr string, port uint16) Side { return Side{Addr: netip.MustParseAddr(addr), Port: port} }
func port(n uint16) Side               { return Side{Port: n} }
func sock(name string) Side            { return Side{Path: name} }
func fd(name string) Side              { return Side{FD: name} }
func count(n int) func(*Spec)          { return func(s *Spec) { s.Count = n } }
func proxy(n int) func(*Spec)          { return func(s *Spec) { s.Proxy = n } }
func reverse(s *Spec)                  { s.Reverse = true }

// diffSpecs compares without looking into netip.Addr.
func diffSpecs(want, got Spec) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
}

var validSpecs = []struct {
	text      string
	want      Spec
	canonical string // "" if text is
}{
	// One port.
	{"80", want(TCP, port(0), port(80)), ":80/tcp"},
	{"80/tcp", want(TCP, port(0), port(80)), ":80/tcp"},
	{"80/udp", want(UDP, port(0), port(80)), ":80/udp"},
	{":80/tcp", want(TCP, port(0), port(80)), ""},
	{"0:80", want(TCP, port(0), port(80)), ":80/tcp"},
	{"000:80", want(TCP, port(0), port(80)), ":80/tcp"},
	{"::80", want(TCP, port(0), port(80)), ":80/tcp"},
	{":0:80", want(TCP, port(0), port(80)), ":80/tcp"},
	{"65535", want(TCP, port(0), port(65535)), ":65535/tcp"},
	{"1", want(TCP, port(0), port(1)), ":1/tcp"},

	// Two.
	{"8080:80", want(TCP, port(8080), port(80)), "8080:80/tcp"},
	{"8080:80/tcp", want(TCP, port(8080), port(80)), ""},
	{"08080:0080", want(TCP, port(8080), port(80)), "8080:80/tcp"},
	{"65535:65535", want(TCP, port(65535), port(65535)), "65535:65535/tcp"},
	{":8080:80", want(TCP, port(8080), port(80)), "8080:80/tcp"},

	// Protocols, in any case.
	{"8080:80/tcp4", want(TCP4, port(8080), port(80)), ""},
	{"8080:80/tcp6", want(TCP6, port(8080), port(80)), ""},
	{"8080:80/udp4", want(UDP4, port(8080), port(80)), ""},
	{"8080:80/udp6", want(UDP6, port(8080), port(80)), ""},
	{"8080:80/TCP", want(TCP, port(8080), port(80)), "8080:80/tcp"},
	{"8080:80/Udp6", want(UDP6, port(8080), port(80)), "8080:80/udp6"},

	// A host address.
	{"127.0.0.1:8080:80", want(TCP, at("127.0.0.1", 8080), port(80)), "127.0.0.1:8080:80/tcp"},
	{"127.0.0.1::80", want(TCP, at("127.0.0.1", 0), port(80)), "127.0.0.1::80/tcp"},
	{"127.0.0.1:0:80", want(TCP, at("127.0.0.1", 0), port(80)), "127.0.0.1::80/tcp"},
	{"0.0.0.0:8080:80/udp", want(UDP, at("0.0.0.0", 8080), port(80)), ""},
	{"[127.0.0.1]:8080:80", want(TCP, at("127.0.0.1", 8080), port(80)), "127.0.0.1:8080:80/tcp"},
	{"[::1]:8080:80", want(TCP, at("::1", 8080), port(80)), "[::1]:8080:80/tcp"},
	{"[::1]::80", want(TCP, at("::1", 0), port(80)), "[::1]::80/tcp"},
	{"[::]:8080:80", want(TCP, at("::", 8080), port(80)), "[::]:8080:80/tcp"},
	{"[0:0:0:0:0:0:0:1]:8080:80", want(TCP, at("::1", 8080), port(80)), "[::1]:8080:80/tcp"},
	{"[2001:DB8::A]:8080:80", want(TCP, at("2001:db8::a", 8080), port(80)), "[2001:db8::a]:8080:80/tcp"},
	{"[::ffff:192.0.2.1]:8080:80", want(TCP, at("192.0.2.1", 8080), port(80)), "192.0.2.1:8080:80/tcp"},
	{"[::ffff:c000:201]:8080:80/tcp4", want(TCP4, at("192.0.2.1", 8080), port(80)), "192.0.2.1:8080:80/tcp4"},
	{"[fe80::1%eth0]:8080:80", want(TCP, at("fe80::1%eth0", 8080), port(80)), "[fe80::1%eth0]:8080:80/tcp"},
	{"[fe80::1%3]:8080:80/udp6", want(UDP6, at("fe80::1%3", 8080), port(80)), ""},
	{"169.254.1.1:8080:80", want(TCP, at("169.254.1.1", 8080), port(80)), "169.254.1.1:8080:80/tcp"},
	{"127.0.0.1:8080:80/tcp4", want(TCP4, at("127.0.0.1", 8080), port(80)), ""},
	{"[::1]:8080:80/tcp6", want(TCP6, at("::1", 8080), port(80)), ""},

	// A container address.
	{"8080:10.0.2.100:80", want(TCP, port(8080), at("10.0.2.100", 80)), "8080:10.0.2.100:80/tcp"},
	{":10.0.2.100:80", want(TCP, port(0), at("10.0.2.100", 80)), ":10.0.2.100:80/tcp"},
	{"::10.0.2.100:80", want(TCP, port(0), at("10.0.2.100", 80)), ":10.0.2.100:80/tcp"},
	{":8080:10.0.2.100:80", want(TCP, port(8080), at("10.0.2.100", 80)), "8080:10.0.2.100:80/tcp"},
	{"8080:[::1]:80", want(TCP, port(8080), at("::1", 80)), "8080:[::1]:80/tcp"},
	{":[fd00::100]:80", want(TCP, port(0), at("fd00::100", 80)), ":[fd00::100]:80/tcp"},
	{"127.0.0.1:8080:127.0.0.1:80", want(TCP, at("127.0.0.1", 8080), at("127.0.0.1", 80)), "127.0.0.1:8080:127.0.0.1:80/tcp"},
	{"127.0.0.1::10.0.2.100:80", want(TCP, at("127.0.0.1", 0), at("10.0.2.100", 80)), "127.0.0.1::10.0.2.100:80/tcp"},
	{"127.0.0.1:8080::80", want(TCP, at("127.0.0.1", 8080), port(80)), "127.0.0.1:8080:80/tcp"},
	{"127.0.0.1:8080:[fd00::100]:80/tcp4", want(TCP4, at("127.0.0.1", 8080), at("fd00::100", 80)), ""},
	{"8080:[::ffff:10.0.2.100]:80", want(TCP, port(8080), at("10.0.2.100", 80)), "8080:10.0.2.100:80/tcp"},

	// Ranges.
	{"8000-8010:80-90", want(TCP, port(8000), port(80), count(11)), "8000-8010:80-90/tcp"},
	{"8000-8000:80-80", want(TCP, port(8000), port(80)), "8000:80/tcp"},
	{"8000-8010", want(TCP, port(0), port(8000), count(11)), ":8000-8010/tcp"},
	{":8000-8010/udp", want(UDP, port(0), port(8000), count(11)), ""},
	{"0:8000-8010/udp", want(UDP, port(0), port(8000), count(11)), ":8000-8010/udp"},
	{"127.0.0.1:8000-8010:80-90", want(TCP, at("127.0.0.1", 8000), port(80), count(11)), "127.0.0.1:8000-8010:80-90/tcp"},
	{"127.0.0.1:8000-8001:10.0.2.100:80-81/udp4", want(UDP4, at("127.0.0.1", 8000), at("10.0.2.100", 80), count(2)), ""},
	{"1-65535:1-65535", want(TCP, port(1), port(1), count(65535)), "1-65535:1-65535/tcp"},

	// Unix sockets.
	{"unix:/run/web.sock:80", want(TCP, sock("/run/web.sock"), port(80)), "unix:/run/web.sock:80/tcp"},
	{"unix:/run/web.sock:80/tcp", want(TCP, sock("/run/web.sock"), port(80)), ""},
	{"unix:/run/web.sock:127.0.0.1:80", want(TCP, sock("/run/web.sock"), at("127.0.0.1", 80)), "unix:/run/web.sock:127.0.0.1:80/tcp"},
	{"unix:/run/web.sock:[::1]:80", want(TCP, sock("/run/web.sock"), at("::1", 80)), "unix:/run/web.sock:[::1]:80/tcp"},
	{"unix:/a b/tcp:80", want(TCP, sock("/a b/tcp"), port(80)), "unix:/a b/tcp:80/tcp"},
	{"unix:/h:unix:/c", want(TCP, sock("/h"), sock("/c")), ""},
	{"unix:/h:unix:/c/tcp", want(TCP, sock("/h"), sock("/c/tcp")), ""},
	{"8080:unix:/run/c.sock", want(TCP, port(8080), sock("/run/c.sock")), ""},
	{":unix:/run/c.sock", want(TCP, port(0), sock("/run/c.sock")), ""},
	{"127.0.0.1:8080:unix:/run/c.sock", want(TCP, at("127.0.0.1", 8080), sock("/run/c.sock")), ""},
	{"[::1]::unix:/run/c.sock", want(TCP, at("::1", 0), sock("/run/c.sock")), ""},
	{"8080:unix:/run/a,b-[c]", want(TCP, port(8080), sock("/run/a,b-[c]")), ""},

	// Reverse.
	{"reverse:unix:/run/db.sock:5432", want(TCP, sock("/run/db.sock"), port(5432), reverse), "reverse:unix:/run/db.sock:5432/tcp"},
	{"reverse:unix:/run/db.sock:5432/tcp4", want(TCP4, sock("/run/db.sock"), port(5432), reverse), ""},
	{"reverse:unix:/run/db.sock:0.0.0.0:5432", want(TCP, sock("/run/db.sock"), at("0.0.0.0", 5432), reverse), "reverse:unix:/run/db.sock:0.0.0.0:5432/tcp"},
	{"reverse:unix:/run/db.sock:[::1]:5432", want(TCP, sock("/run/db.sock"), at("::1", 5432), reverse), "reverse:unix:/run/db.sock:[::1]:5432/tcp"},
	{"reverse:unix:/run/db.sock:unix:/run/in.sock", want(TCP, sock("/run/db.sock"), sock("/run/in.sock"), reverse), ""},

	// Inherited listeners.
	{"fd:web:80", want(TCP, fd("web"), port(80)), "fd:web:80/tcp"},
	{"fd:0:80", want(TCP, fd("0"), port(80)), "fd:0:80/tcp"},
	{"fd:dns/x:53/udp", want(UDP, fd("dns/x"), port(53)), ""},
	{"fd:web:10.0.2.100:80/tcp", want(TCP, fd("web"), at("10.0.2.100", 80)), ""},
	{"fd:web:unix:/run/c.sock", want(TCP, fd("web"), sock("/run/c.sock")), ""},

	// The PROXY protocol.
	{"8080:80,proxy=v1", want(TCP, port(8080), port(80), proxy(1)), "8080:80/tcp,proxy=v1"},
	{"8080:80/tcp,proxy=v2", want(TCP, port(8080), port(80), proxy(2)), ""},
	{"80,proxy=v2", want(TCP, port(0), port(80), proxy(2)), ":80/tcp,proxy=v2"},
	{"8080:unix:/c,proxy=v2", want(TCP, port(8080), sock("/c"), proxy(2)), ""},
	{"fd:web:80/tcp6,proxy=v1", want(TCP6, fd("web"), port(80), proxy(1)), ""},
	{"8000-8001:80-81/tcp4,proxy=v1", want(TCP4, port(8000), port(80), count(2), proxy(1)), ""},
}

func TestParseSpec(t *testing.T) {
	for _, tt := range validSpecs {
		got, err := ParseSpec(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if diff := diffSpecs(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.text, diff)
		}
		canonical := tt.canonical
		if canonical == "" {
			canonical = tt.text
		}
		if s := got.String(); s != canonical {
			t.Errorf("%s is %s, want %s", tt.text, s, canonical)
		}
		if again, err := ParseSpec(got.String()); err != nil || again != got {
			t.Errorf("%s read again: %v, %v", got, again, err)
		}
	}
}

// TestParseSpecCombinations reads every combination of parts back.
func TestParseSpecCombinations(t *testing.T) {
	hosts := map[string]Side{
		"": {}, "8080": port(8080), ":8080": port(8080), "127.0.0.1:8080": at("127.0.0.1", 8080),
		"127.0.0.1:": at("127.0.0.1", 0), "[::1]:8080": at("::1", 8080), "[::1]:": at("::1", 0),
		"0.0.0.0:1": at("0.0.0.0", 1), "[::]:65535": at("::", 65535), "[fe80::2%lo]:9": at("fe80::2%lo", 9),
	}
	containers := map[string]Side{
		"80": port(80), "10.0.2.100:80": at("10.0.2.100", 80), "[fd00::64]:80": at("fd00::64", 80),
		"127.0.0.1:65535": at("127.0.0.1", 65535), "[::1]:1": at("::1", 1),
	}
	n := 0
	for h, host := range hosts {
		for c, container := range containers {
			for _, proto := range Protos {
				text := fmt.Sprintf("%s:%s/%s", h, c, proto)
				got, err := ParseSpec(text)
				family := proto.Family()
				if host.Addr.Is4() && family == 6 || host.Addr.Is6() && family == 4 {
					if err == nil {
						t.Errorf("%s is accepted as %v", text, got)
					}
					continue
				}
				if w := want(proto, host, container); err != nil || got != w {
					t.Errorf("%s is %+v, %v, want %+v", text, got, err, w)
				}
				n++
			}
		}
	}
	if n < 200 {
		t.Errorf("only %d combinations", n)
	}
}

var invalidSpecs = []struct{ text, complaint string }{
	{"", "empty"},
	{":", "container port is missing"},
	{"::", "container port is missing"},
	{"/tcp", "container port is missing"},
	{"0", "1 to 65535"},
	{"65536", "1 to 65535"},
	{"99999999999999999999", "1 to 65535"},
	{"-1", "container port is missing"},
	{"+80", "1 to 65535"},
	{"8_0", "1 to 65535"},
	{"0x50", "1 to 65535"},
	{"http", "1 to 65535"},
	{" 80", "1 to 65535"},
	{"80 ", "1 to 65535"},
	{"8080:0", "1 to 65535"},
	{"8080:65536", "1 to 65535"},
	{"65536:80", "1 to 65535"},
	{"-8080:80", "host port is missing"},
	{"８０:80", "1 to 65535"},
	{"80/sctp", "want tcp, tcp4, tcp6, udp, udp4 or udp6"},
	{"80/", "unknown protocol"},
	{"80/tcp/udp", "no container port"},
	{"80/tcp5", "unknown protocol"},
	{"127.0.0.1:80", "127.0.0.1::80"},
	{"[::1]:80", "[::1]::80"},
	{"127.0.0.1", "1 to 65535"},
	{"127.0.0.1:8080:10.0.2.100:", "container port is missing"},
	{"127.0.0.1:10.0.2.100:80", "no host port"},
	{"8080::80", "no IP address"},
	{"1:2:3", "no IP address"},
	{"1:2:3:4", "too many parts"},
	{"1:2:3:4:5", "too many parts"},
	{"127.0.0.1:10.0.2.100:10.0.2.101:80", "missing between two addresses"},
	{"127.0.0.1:8080:81:80", "too many parts"},
	{"::1:8080:80", "IPv6 addresses stand in brackets"},
	{"fe80::1:8080:80", "IPv6 addresses stand in brackets"},
	{"localhost:8080:80", "no IP address"},
	{"*:8080:80", "no IP address"},
	{"256.0.0.1:8080:80", "no IP address"},
	{"127.0.0.01:8080:80", "no IP address"},
	{"127.1:8080:80", "no IP address"},
	{"[::1:8080:80", "bracket is not closed"},
	{"::1]:8080:80", "bracket out of place"},
	{"[::1]8080:80", "bracket out of place"},
	{"x[::1]:8080:80", "bracket out of place"},
	{"[[::1]]:8080:80", "bracket out of place"},
	{"[]:8080:80", "no IP address"},
	{"[::g]:8080:80", "no IP address"},
	{"8080:80]", "bracket out of place"},
	{"8000-8010:80", "ranges of equal length"},
	{"8000:80-90", "1 host ports for 11 container ports"},
	{"8000-8010:80-91", "ranges of equal length"},
	{"8010-8000:90-80", "runs backwards"},
	{"8010-8000:80-90", "runs backwards"},
	{"8000-:80-90", "host port is missing"},
	{"0-10:80-90", "1 to 65535"},
	{"8000-8010-8020:80-90", "1 to 65535"},
	{"65530-65540:80-90", "1 to 65535"},
	{"127.0.0.1:8080:80/tcp6", "want tcp4"},
	{"[::1]:8080:80/tcp4", "want tcp6"},
	{"0.0.0.0:8080:80/udp6", "want udp4"},
	{"[::]:8080:80/udp4", "want udp6"},
	{"[::ffff:127.0.0.1]:8080:80/tcp6", "want tcp4"},
	{"[::1%lo]:8080:80", "link-local addresses only"},
	{"[2001:db8::1%eth0]:8080:80", "link-local addresses only"},
	{"[::ffff:1.2.3.4%eth0]:8080:80", "link-local addresses only"},
	{"[fe80::1]:8080:80", "[fe80::1%INTERFACE]"},
	{"[fe80::1%]:8080:80", "no IP address"},
	{"[fe80::1%a b]:8080:80", "no name of an interface"},
	{"[2001:db8::1%a\nb]:8080:80/tcp4", "no name of an interface"},
	{"224.0.0.1:8080:80", "multicast"},
	{"[ff02::1%eth0]:8080:80", "multicast"},
	{"8080:224.0.0.1:80", "multicast"},
	{"8080:0.0.0.0:80", "nothing to connect to"},
	{"8080:[::]:80", "nothing to connect to"},
	{"8080:[fe80::1%eth0]:80", "link-local"},
	{"8080:[fe80::1]:80", "link-local"},
	{"8080:80,proxy=v3", "want proxy=v1 or proxy=v2"},
	{"8080:80,proxy=", "want proxy=v1 or proxy=v2"},
	{"8080:80,proxy=v1,proxy=v2", "no container port"},
	{"8080:80/tcp,proxy=v1,proxy=v2", "unknown protocol"},
	{"8080:80/udp,proxy=v1", "needs a stream"},
	{"8080:80,PROXY=v1", "no container port"},
	{"8080:80,foo", "no container port"},
	{",proxy=v1", "container port is missing"},
	{"unix:", "path is empty"},
	{"unix:/run/a", "container's port is missing"},
	{"unix:/run/a:", "container port is missing"},
	{"unix::80", "path is empty"},
	{"unix:run/a:80", "absolute"},
	{"unix:/run/:80", "absolute"},
	{"unix:/:80", "absolute"},
	{"unix:@abstract:80", "absolute"},
	{"unix:/run/a:80/udp", "no /udp"},
	{"unix:/run/a:80/tcp4", "no /tcp4"},
	{"unix:/run/a:80-81", "one port"},
	{"unix:/run/a:80,proxy=v2", "TCP port on the host"},
	{"unix:/run/a:1.2.3.4:5:6", "too many parts"},
	{"unix:/run/a:unix:", "path is empty"},
	{"unix:/run/a:unix:b", "absolute"},
	{"unix:/run/a\n:80", "printable"},
	{"unix:/run/\xff:80", "printable"},
	{"unix:/" + strings.Repeat("x", 107) + ":80", "at most 107"},
	{"8080:unix:", "path is empty"},
	{"8080:unix:relative", "absolute"},
	{"8080:unix:/a:b", "printable"},
	{"8080-8081:unix:/a", "one port"},
	{"127.0.0.1:unix:/a", "no host port"},
	{"1:2:3:unix:/a", "too many parts"},
	{"8080:UNIX:/a", "unknown protocol"},
	{"reverse:8080:80", "leads to a unix socket"},
	{"reverse:", "leads to a unix socket"},
	{"reverse:fd:web:80", "leads to a unix socket"},
	{"reverse:unix:/a:80/udp", "want tcp"},
	{"reverse:unix:/a:80,proxy=v1", "PROXY"},
	{"reverse:unix:/a:127.0.0.1:80/tcp6", "want tcp4"},
	{"reverse:unix:/a:[::]:80/tcp4", "want tcp6"},
	{"reverse:unix:/a:unix:/b:c", "printable"},
	{"reverse:reverse:unix:/a:80", "leads to a unix socket"},
	{"fd:web", "container's port is missing"},
	{"fd::80", "no name"},
	{"fd:web:0", "1 to 65535"},
	{"fd:web:80-81", "one port"},
	{"fd:w\x00b:80", "printable"},
	{"fd:" + strings.Repeat("x", 256) + ":80", "up to 255"},
	{strings.Repeat("8", 600), "at most 512"},
	{"127.0.0.1:8080:80/tcp,127.0.0.1:4040:40/tcp", "too many parts"},
	{"bad", "1 to 65535"},
}

func TestParseSpecRefuses(t *testing.T) {
	for _, tt := range invalidSpecs {
		got, err := ParseSpec(tt.text)
		if err == nil {
			t.Errorf("%q is accepted as %+v", tt.text, got)
			continue
		}
		if got != (Spec{}) {
			t.Errorf("%q is refused, but gives %+v", tt.text, got)
		}
		if !errors.Is(err, ErrSpec) {
			t.Errorf("%q: %v is no ErrSpec", tt.text, err)
		}
		checkLine(t, err, tt.complaint, "port spec "+quote(tt.text))
	}
}

// checkLine checks that an error is one line with some words.
func checkLine(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q says nothing of %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r\t") {
		t.Errorf("%q is more than one line", err)
	}
}

// TestParseSpecRootlessKit has the specs of RootlessKit's own test of its parser.
func TestParseSpecRootlessKit(t *testing.T) {
	for text, want := range map[string]Spec{
		"127.0.0.1:8080:80/tcp":            want(TCP, at("127.0.0.1", 8080), port(80)),
		"127.0.0.1:8080:80/tcp4":           want(TCP4, at("127.0.0.1", 8080), port(80)),
		"127.0.0.1:8080:10.0.2.100:80/tcp": want(TCP, at("127.0.0.1", 8080), at("10.0.2.100", 80)),
		"[::1]:8080:80/tcp":                want(TCP, at("::1", 8080), port(80)),
		"[::1]:8080:[::2]:80/udp":          want(UDP, at("::1", 8080), at("::2", 80)),
		":8080:80/tcp":                     want(TCP, port(8080), port(80)),
		":8080:10.0.2.100:80/udp":          want(UDP, port(8080), at("10.0.2.100", 80)),
	} {
		if got, err := ParseSpec(text); err != nil || got != want {
			t.Errorf("%s is %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := want(TCP, port(8080), port(80))
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spec := range map[string]Spec{
		"no protocol":        want("", port(1), port(1)),
		"capitals":           want("TCP", port(1), port(1)),
		"no ports":           want(TCP, port(1), port(1), count(0)),
		"too many":           want(TCP, port(1), port(1), count(65536)),
		"over the end":       want(TCP, port(65535), port(1), count(2)),
		"container over":     want(TCP, port(1), port(65535), count(2)),
		"proxy":              want(TCP, port(1), port(1), proxy(3)),
		"negative proxy":     want(TCP, port(1), port(1), proxy(-1)),
		"mapped":             want(TCP, Side{Addr: netip.MustParseAddr("::ffff:1.2.3.4"), Port: 1}, port(1)),
		"mapped container":   want(TCP, port(1), Side{Addr: netip.MustParseAddr("::ffff:1.2.3.4"), Port: 1}),
		"path and port":      want(TCP, Side{Path: "/a", Port: 1}, port(1)),
		"path and fd":        want(TCP, Side{Path: "/a", FD: "1"}, port(1)),
		"fd and port":        want(TCP, Side{FD: "1", Port: 1}, port(1)),
		"fd in container":    want(TCP, port(1), fd("x")),
		"container both":     want(TCP, port(1), Side{Path: "/a", Port: 1}),
		"reverse from ports": want(TCP, port(1), port(1), reverse),
		"reverse from fd":    want(TCP, fd("x"), port(1), reverse),
		"tcp4 to a path":     want(TCP4, port(1), sock("/a")),
	} {
		if err := spec.Validate(); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %+v: %v, want ErrSpec", name, spec, err)
		} else {
			checkLine(t, err, "want")
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, tt := range validSpecs {
		f.Add(tt.text)
	}
	for _, tt := range invalidSpecs {
		f.Add(tt.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSpec(text)
		if err != nil {
			checkLine(t, err, "port spec")
			return
		}
		if err := s.Validate(); err != nil {
			t.Errorf("%q is read as %+v, which is invalid: %v", text, s, err)
		}
		if s != s.normal() {
			t.Errorf("%q is read as %+v, which is not normal", text, s)
		}
		again, err := ParseSpec(s.String())
		if err != nil || again != s {
			t.Errorf("%q is %+v; its text %q is %+v, %v", text, s, s, again, err)
		}
		if c := s.claims(); c != nil && !Conflict(s, s) {
			t.Errorf("%q does not conflict with itself", text)
		}
	})
}

// FuzzSpecString starts with a Spec: every valid one can be written and read.
func FuzzSpecString(f *testing.F) {
	f.Add("tcp", "127.0.0.1", uint16(8080), "", "", "10.0.2.100", uint16(80), "", 1, 0, false)
	f.Add("tcp", "", uint16(0), "/run/a", "", "", uint16(80), "", 1, 0, true)
	f.Add("udp6", "fe80::1%lo", uint16(8080), "", "", "", uint16(80), "", 3, 0, false)
	f.Add("tcp", "", uint16(0), "", "web", "", uint16(0), "/run/b", 1, 2, false)
	f.Fuzz(func(t *testing.T, proto, ip1 string, port1 uint16, path1, fd, ip2 string, port2 uint16, path2 string, count, proxy int, reverse bool) {
		a1, _ := netip.ParseAddr(ip1)
		a2, _ := netip.ParseAddr(ip2)
		s := Spec{
			Proto: Proto(proto), Count: count, Proxy: proxy, Reverse: reverse,
			Host:      Side{Addr: a1, Port: port1, Path: path1, FD: fd},
			Container: Side{Addr: a2, Port: port2, Path: path2},
		}
		if err := s.Validate(); err != nil {
			checkLine(t, err)
			return
		}
		if again, err := ParseSpec(s.String()); err != nil || again != s {
			t.Errorf("%+v is %q, which is read as %+v, %v", s, s, again, err)
		}
	})
}
