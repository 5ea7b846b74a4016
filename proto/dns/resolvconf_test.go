package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addrs(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

var addrEqual = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestParseResolvConf(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want ResolvConf
	}{
		"empty": {"", ResolvConf{}},
		"order and duplicates": {
			"nameserver 192.0.2.2\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
			ResolvConf{Nameservers: addrs("192.0.2.2", "192.0.2.1")},
		},
		"mapped is unmapped": {
			"nameserver ::ffff:192.0.2.1\nnameserver 192.0.2.1",
			ResolvConf{Nameservers: addrs("192.0.2.1")},
		},
		"zone only for link-local": {
			"nameserver fe80::1%eth0\nnameserver 2001:db8::1%eth0\nnameserver 2001:db8::2",
			ResolvConf{Nameservers: addrs("fe80::1%eth0", "2001:db8::2")},
		},
		"unusable addresses": {
			"nameserver\nnameserver example.com\nnameserver 1.2.3\nnameserver 224.0.0.1\nnameserver ff02::1\nnameserver 0.0.0.0",
			ResolvConf{Nameservers: addrs("0.0.0.0")},
		},
		"last of search and domain wins": {
			"search a.example b.example\ndomain c.example d.example\n",
			ResolvConf{Search: []string{"c.example"}},
		},
		"empty search is ignored": {
			"domain a.example\nsearch\nsearch # none\n",
			ResolvConf{Search: []string{"a.example"}},
		},
		"options add up": {
			"options ndots:2 edns0\noptions trust-ad\n",
			ResolvConf{Options: []string{"ndots:2", "edns0", "trust-ad"}},
		},
		"comments": {
			"# nameserver 192.0.2.1\n; nameserver 192.0.2.2\n  # x\nnameserver 192.0.2.3 # why\nsearch a.example ;b.example\n",
			ResolvConf{Nameservers: addrs("192.0.2.3"), Search: []string{"a.example"}},
		},
		"BOM, CRLF, tabs, no final newline": {
			"\xef\xbb\xbfnameserver\t192.0.2.1\r\nsearch  a.example\tb.example\r\n\r\nnameserver 192.0.2.2",
			ResolvConf{Nameservers: addrs("192.0.2.1", "192.0.2.2"), Search: []string{"a.example", "b.example"}},
		},
		"unknown keywords and prefixes": {
			"nameservers 192.0.2.1\nsortlist 192.0.2.0\nNAMESERVER 192.0.2.1\n",
			ResolvConf{},
		},
		"control bytes in words": {
			"search a\x00b c.example \x7f\n",
			ResolvConf{Search: []string{"c.example"}},
		},
		"over-long line": {
			"search " + strings.Repeat("a.example ", 1000) + "\nnameserver 192.0.2.1\n",
			ResolvConf{Nameservers: addrs("192.0.2.1")},
		},
		"root search domain": {"search .\n", ResolvConf{Search: []string{"."}}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, ParseResolvConf([]byte(c.text)), addrEqual); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseResolvConfBounds(t *testing.T) {
	var b strings.Builder
	b.WriteString("search")
	for i := range MaxSearch + 5 {
		fmt.Fprintf(&b, " d%d.example", i)
	}
	for i := range MaxNameservers + 5 {
		fmt.Fprintf(&b, "\nnameserver 192.0.2.%d\noptions o%d p%d q%d", i, i, i, i)
	}
	rc := ParseResolvConf([]byte(b.String()))
	if len(rc.Search) != MaxSearch || len(rc.Nameservers) != MaxNameservers || len(rc.Options) != MaxOptions {
		t.Errorf("%d search, %d servers, %d options", len(rc.Search), len(rc.Nameservers), len(rc.Options))
	}
	if rc.Nameservers[0].String() != "192.0.2.0" || rc.Search[0] != "d0.example" || rc.Options[1] != "p0" {
		t.Errorf("not the first ones: %v", rc)
	}
}

func TestWriteResolvConf(t *testing.T) {
	got := string(WriteResolvConf(addrs("10.0.2.3", "fd00::3"),
		[]string{"a.example", "evil\nnameserver 198.51.100.1", "b.example"}, []string{"ndots:2"}))
	want := "nameserver 10.0.2.3\nnameserver fd00::3\nsearch a.example b.example\noptions ndots:2\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := WriteResolvConf(nil, nil, nil); len(got) != 0 {
		t.Errorf("nothing to say, but wrote %q", got)
	}
	if got := WriteResolvConf([]netip.Addr{{}}, nil, nil); len(got) != 0 {
		t.Errorf("an invalid address was written: %q", got)
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver fe80::1%eth0\r\nsearch a.example\noptions ndots:1 # x\n"))
	f.Add([]byte("\xef\xbb\xbfdomain .\nnameserver ::ffff:1.2.3.4"))
	f.Fuzz(func(t *testing.T, text []byte) {
		rc := ParseResolvConf(text)
		if len(rc.Nameservers) > MaxNameservers || len(rc.Search) > MaxSearch || len(rc.Options) > MaxOptions {
			t.Fatalf("bounds not held: %v", rc)
		}
		again := ParseResolvConf(WriteResolvConf(rc.Nameservers, rc.Search, rc.Options))
		if d := cmp.Diff(rc, again, addrEqual); d != "" {
			t.Fatalf("does not read back as itself: %s", d)
		}
	})
}
