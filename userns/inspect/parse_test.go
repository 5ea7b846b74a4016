package inspect

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClean(t *testing.T) {
	for _, tc := range []struct {
		in    string
		limit int
		want  string
	}{
		{"nginx: master process", 72, "nginx: master process"},
		{"a\x1b[31mb\nc\x7f\x00", 72, "a?[31mb?c??"},
		{"right\u202eto left", 72, "right?to left"},
		{"abcdef", 4, "abc…"},
		{"äöü", 3, "äöü"},
		{"", 3, ""},
	} {
		if got := Clean(tc.in, tc.limit); got != tc.want {
			t.Errorf("Clean(%q, %d) = %q, want %q", tc.in, tc.limit, got, tc.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 7 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 100 200"
	got, err := parseStat("12 (evil) R 1 (x)" + rest)
	if want := (stat{comm: "evil) R 1 (x", state: 'S', parent: 7, start: 4711}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "12 (x", ")(", "12 (x) S 1", "12 (x) S y" + rest[4:]} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) was no error", bad)
		}
	}
}

func TestParseStatus(t *testing.T) {
	uid, inner := parseStatus("Name:\tx\nUid:\t1000\t1001\t1000\t1000\nNSpid:\t4711\t12\t1\n")
	if uid != 1001 || inner != 1 {
		t.Errorf("uid %d, inner %d", uid, inner)
	}
}

func TestParseMounts(t *testing.T) {
	got := parseMounts("36 35 0:4 net:[4026532201] /run/user/1000/a\\040b/netns rw shared:1 - nsfs nsfs rw\n" +
		"37 35 0:4 user:[5] /x rw - nsfs nsfs rw\n38 35 8:1 / / rw - ext4 /dev/sda1 rw\nshort line\n39 1 0:4 net:[] /y rw\n")
	want := []nsMount{{4026532201, "/run/user/1000/a b/netns"}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(nsMount{})); d != "" {
		t.Error(d)
	}
}

func TestTunName(t *testing.T) {
	if got := tunName("pos:\t0\nflags:\t0100002\nmnt_id:\t20\niff:\ttap0\n"); got != "tap0" {
		t.Errorf("got %q", got)
	}
	if got := tunName("pos:\t0\n"); got != "" {
		t.Errorf("without a name: %q", got)
	}
}

// The bytes are what a kernel 6.18 sent on a little-endian machine, cut to the
// attributes that matter.
func TestParseLink(t *testing.T) {
	if host.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are little-endian")
	}
	head := "0000 0100 0a000000 43100100 00000000"
	for name, tc := range map[string]struct {
		bytes string
		want  Interface
	}{
		"veth": {head + "0a000300 6574683000 000000 08000400 dc050000 08000500 02000000 08002500 03000000 08000a00 05000000" +
			"0c001200 08000100 76657468", Interface{Index: 10, Name: "eth0", Kind: "veth", MTU: 1500, Up: true, link: 2, nsid: 3, master: 5}},
		"attribute cut off": {head + "0a000300 6574683000 000000 ff000400 dc", Interface{Index: 10, Name: "eth0", Up: true, nsid: -1}},
		"short number":      {head + "06000400 dc05 0000", Interface{Index: 10, Up: true, nsid: -1}},
	} {
		got, err := parseLink(unhex(t, tc.bytes))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(tc.want, got, cmp.AllowUnexported(Interface{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := parseLink(make([]byte, 15)); err == nil {
		t.Error("a short header was no error")
	}
}

func TestParseAddress(t *testing.T) {
	if host.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are little-endian")
	}
	index, p, err := parseAddress(unhex(t, "02188000 0a000000 08000100 0a000002 08000200 0a000001"))
	if err != nil || index != 10 || p != netip.MustParsePrefix("10.0.0.1/24") {
		t.Errorf("got %d, %v, %v", index, p, err)
	}
	for _, bad := range []string{"021880", "02218000 0a000000 08000200 0a000001", "02188000 0a000000"} {
		if _, _, err := parseAddress(unhex(t, bad)); err == nil {
			t.Errorf("%s was no error", bad)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	var digits []byte
	for _, c := range []byte(s) {
		if c != ' ' {
			digits = append(digits, c)
		}
	}
	b, err := hex.DecodeString(string(digits))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("12 (x) S 7 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 100 200"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseStat(string(b))
		_, _ = parseStatus(string(b))
		_ = parseMounts(string(b))
		_, _ = parseLink(b)
		_, _, _ = parseAddress(b)
		_, _ = parseRunc(b)
		_, _ = parseCrun(b)
		_, _ = nameIn(b)
		if got := Clean(string(b), 16); len([]rune(got)) > 16 {
			t.Errorf("Clean(%q) has more than 16 runes: %q", b, got)
		}
	})
}
