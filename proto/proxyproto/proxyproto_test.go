package proxyproto

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func addr(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

const sig = "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"

// vectors are written out by hand from proxy-protocol.txt.
var vectors = []struct {
	name                string
	version             int
	source, destination string
	want                string
	seen                [2]string // what a reader learns, if it is not what was given
}{
	{"v1 IPv4", V1, "192.168.0.1:56324", "192.168.0.11:443",
		"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", [2]string{}},
	{"v1 longest IPv4", V1, "255.255.255.255:65535", "255.255.255.255:65535",
		"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", [2]string{}},
	{"v1 IPv6", V1, "[2001:db8::1]:1", "[2001:db8::2]:65535", "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", [2]string{}},
	{"v1 mapped is IPv4", V1, "[::ffff:192.0.2.1]:5", "192.0.2.2:6", "PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n",
		[2]string{"192.0.2.1:5", "192.0.2.2:6"}},
	{"v1 zone", V1, "[fe80::1%eth0]:5", "[fe80::2%eth0]:6", "PROXY TCP6 fe80::1 fe80::2 5 6\r\n",
		[2]string{"[fe80::1]:5", "[fe80::2]:6"}},
	{"v1 mixed", V1, "192.0.2.1:5", "[2001:db8::2]:6", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 5 6\r\n",
		[2]string{"[::ffff:192.0.2.1]:5", "[2001:db8::2]:6"}},
	{"v1 unknown", V1, "", "192.0.2.1:1", "PROXY UNKNOWN\r\n", [2]string{"", ""}},
	{"v1 unknown destination", V1, "192.0.2.1:1", "", "PROXY UNKNOWN\r\n", [2]string{"", ""}},
	{"v2 IPv4", V2, "192.168.0.1:56324", "192.168.0.11:443",
		sig + "\x21\x11\x00\x0c\xc0\xa8\x00\x01\xc0\xa8\x00\x0b\xdc\x04\x01\xbb", [2]string{}},
	{"v2 IPv6", V2, "[2001:db8::1]:1", "[2001:db8::2]:65535", sig + "\x21\x21\x00\x24" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01\xff\xff", [2]string{}},
	{"v2 local", V2, "", "", sig + "\x20\x00\x00\x00", [2]string{}},
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			got := Append([]byte("x"), v.version, addr(v.source), addr(v.destination))
			if string(got) != "x"+v.want {
				t.Fatalf("got %q, want %q", got[1:], v.want)
			}
			seen := v.seen
			if seen == [2]string{} && v.source != "" && v.destination != "" {
				seen = [2]string{v.source, v.destination}
			}
			want := Header{Version: v.version, Source: addr(seen[0]), Destination: addr(seen[1])}
			h, n, err := Parse([]byte(v.want + "payload"))
			if err != nil || h != want || n != len(v.want) {
				t.Errorf("Parse: %+v, %d bytes, %v; want %+v, %d bytes", h, n, err, want, len(v.want))
			}
			for i := range len(v.want) {
				if _, _, err := Parse([]byte(v.want[:i])); !errors.Is(err, ErrIncomplete) {
					t.Fatalf("the first %d bytes: %v, want ErrIncomplete", i, err)
				}
			}
		})
	}
}

func TestUnknownVersionAppendsNothing(t *testing.T) {
	if b := Append(nil, 3, addr("192.0.2.1:1"), addr("192.0.2.2:1")); len(b) != 0 {
		t.Errorf("got %q", b)
	}
}

func TestParseSkips(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Header
	}{
		{"unknown with addresses", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Header{Version: V1}},
		{"local with addresses", sig + "\x20\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02", Header{Version: V2}},
		{"proxy of nobody", sig + "\x21\x00\x00\x02ab", Header{Version: V2}},
		{"optional fields", sig + "\x21\x11\x00\x10\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02\x04\x00\x01\x00",
			Header{V2, addr("1.2.3.4:1"), addr("5.6.7.8:2")}},
	} {
		h, n, err := Parse([]byte(c.in))
		if err != nil || h != c.want || n != len(c.in) {
			t.Errorf("%s: %+v, %d bytes, %v; want %+v, %d bytes", c.name, h, n, err, c.want, len(c.in))
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"other text":           "GET / HTTP/1.1\r\n",
		"lower case":           "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
		"v1 without CR":        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
		"v1 nothing":           "PROXY \r\n",
		"v1 newline only":      "PROXY \n",
		"v1 too long":          "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n",
		"v1 endless":           "PROXY UNKNOWN " + strings.Repeat("x", 200),
		"v1 two spaces":        "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
		"v1 trailing space":    "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
		"v1 other family":      "PROXY TCP4 ::1 ::1 1 2\r\n",
		"v1 IPv4 called IPv6":  "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
		"v1 zone":              "PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
		"v1 UDP":               "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
		"v1 port too high":     "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
		"v1 port with zero":    "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
		"v1 port with sign":    "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
		"v1 unknown, no blank": "PROXY UNKNOWNX\r\n",
		"v2 wrong signature":   "\r\n\r\n\x00\r\nQUIT\r",
		"v2 version 1":         sig + "\x11\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
		"v2 other command":     sig + "\x22\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
		"v2 UDP":               sig + "\x21\x12\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
		"v2 short addresses":   sig + "\x21\x11\x00\x0b\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00",
		"v2 IPv4 called IPv6":  sig + "\x21\x21\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
	} {
		if h, _, err := Parse([]byte(in)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v, want ErrMalformed", name, h, err)
		}
	}
}

// FuzzParse: what is taken for a header says the same when it is written again.
func FuzzParse(f *testing.F) {
	for _, v := range vectors {
		f.Add([]byte(v.want))
	}
	f.Add([]byte("PROXY UNKNOWN x\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrIncomplete) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if n <= 0 || n > len(b) {
			t.Fatalf("a header of %d bytes in %d", n, len(b))
		}
		again := Append(nil, h.Version, h.Source, h.Destination)
		h2, n2, err := Parse(again)
		if err != nil || n2 != len(again) || unmapped(h2) != unmapped(h) {
			t.Fatalf("%q: %+v, written again %q: %+v, %v", b[:n], h, again, h2, err)
		}
		if h.Version == V2 && h.Source.IsValid() && !bytes.HasPrefix(b, []byte(signature2)) {
			t.Fatalf("version 2 without its signature: %q", b)
		}
	})
}

// unmapped is h with mapped IPv4 addresses as IPv4: Append does the same.
func unmapped(h Header) Header {
	h.Source = netip.AddrPortFrom(h.Source.Addr().Unmap(), h.Source.Port())
	h.Destination = netip.AddrPortFrom(h.Destination.Addr().Unmap(), h.Destination.Port())
	return h
}
