package userns

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const all = 1<<32 - 1

func TestParseMap(t *testing.T) {
	for _, tc := range []struct {
		name string
		text string
		want Map
	}{
		{"the kernel's own form", "         0       1000          1\n         1     100000      65536\n",
			Map{{0, 1000, 1}, {1, 100000, 65536}}},
		{"the initial namespace", "         0          0 4294967295\n", Map{{0, 0, all}}},
		{"the last usable id", "4294967294 0 1", Map{{all - 1, 0, 1}}},
		{"neighbours", "0 0 5\n5 5 5\n", Map{{0, 0, 5}, {5, 5, 5}}},
		{"blank lines", "\n0 1 1\n\n", Map{{0, 1, 1}}},
	} {
		got, err := ParseMap(tc.text)
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", tc.name, err, diff)
		}
	}
}

func TestParseMapRefuses(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"nothing", "", "no range"},
		{"two fields", "0 1\n", "line 1 has 2 fields"},
		{"four fields", "0 1 1\n1 2 3 4\n", "line 2 has 4 fields"},
		{"a name", "root 0 1\n", "line 1"},
		{"negative", "-1 0 1\n", "line 1"},
		{"more than 32 bits", "4294967296 0 1\n", "value out of range"},
		{"hexadecimal", "0x10 0 1\n", "line 1"},
		{"no ids", "0 0 0\n", "empty"},
		{"past the end inside", "4294967294 0 2\n", "past id 4294967294"},
		{"past the end outside", "0 4294967295 1\n", "past id"},
		{"wraps", "2 0 4294967295\n", "past id"},
		{"overlap inside", "0 0 10\n9 100 1\n", "overlap inside"},
		{"overlap outside", "100 0 10\n0 9 1\n", "overlap outside"},
		{"overlap with a later line", "5 50 5\n100 100 1\n0 0 6\n", "overlap inside"},
		{"the same twice", "0 0 1\n0 0 1\n", "overlap"},
		{"341 lines", strings.Repeat("0 0 1\n", MaxLines+1), "more than 340"},
	} {
		_, err := ParseMap(tc.text)
		if !errors.Is(err, ErrMap) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestTranslate(t *testing.T) {
	m := Map{{0, 1000, 1}, {1, 100000, 65536}, {all - 1, 5, 1}}
	for _, tc := range []struct{ inside, outside uint32 }{
		{0, 1000}, {1, 100000}, {5, 100004}, {65536, 165535}, {all - 1, 5},
	} {
		if got, ok := m.ToOutside(tc.inside); got != tc.outside || !ok {
			t.Errorf("ToOutside(%d) = %d, %t, want %d", tc.inside, got, ok, tc.outside)
		}
		if got, ok := m.ToInside(tc.outside); got != tc.inside || !ok {
			t.Errorf("ToInside(%d) = %d, %t, want %d", tc.outside, got, ok, tc.inside)
		}
	}
	for _, id := range []uint32{65537, all - 2, all} {
		if got, ok := m.ToOutside(id); ok {
			t.Errorf("ToOutside(%d) = %d", id, got)
		}
	}
	for _, id := range []uint32{0, 999, 1001, 99999, 165536, all} {
		if got, ok := m.ToInside(id); ok {
			t.Errorf("ToInside(%d) = %d", id, got)
		}
	}
	if got := m.Max(); got != all-1 {
		t.Errorf("Max = %d", got)
	}
	if got := (Map{{0, 0, all}}).Max(); got != all-1 {
		t.Errorf("Max of everything = %d", got)
	}
	if got := (Map)(nil).Max(); got != 0 {
		t.Errorf("Max of nothing = %d", got)
	}
}

func TestFullMap(t *testing.T) {
	for _, tc := range []struct {
		name string
		own  uint32
		sub  []Subrange
		want Map
	}{
		{"none", 1000, nil, Map{{0, 1000, 1}}},
		{"one", 1000, []Subrange{{100000, 65536}}, Map{{0, 1000, 1}, {1, 100000, 65536}}},
		{"several, not merged", 1000, []Subrange{{200000, 10}, {100000, 10}, {100010, 10}},
			Map{{0, 1000, 1}, {1, 200000, 10}, {11, 100000, 10}, {21, 100010, 10}}},
		{"own id in the middle", 105, []Subrange{{100, 10}}, Map{{0, 105, 1}, {1, 100, 5}, {6, 106, 4}}},
		{"own id first", 100, []Subrange{{100, 10}}, Map{{0, 100, 1}, {1, 101, 9}}},
		{"own id last", 109, []Subrange{{100, 10}}, Map{{0, 109, 1}, {1, 100, 9}}},
		{"own id alone", 100, []Subrange{{100, 1}}, Map{{0, 100, 1}}},
		{"up to the last id", 0, []Subrange{{1, all - 1}}, Map{{0, 0, 1}, {1, 1, all - 1}}},
	} {
		got, err := FullMap(tc.own, tc.sub)
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", tc.name, err, diff)
		}
	}
	for _, tc := range []struct {
		name string
		sub  []Subrange
	}{
		{"overlap", []Subrange{{100, 10}, {105, 10}}},
		{"empty", []Subrange{{100, 0}}},
		{"past the last id", []Subrange{{all - 1, 2}}},
		{"more inside than there are ids", []Subrange{{2, all - 3}, {0, 1}, {all - 2, 1}, {1, 1}}},
		{"too many", make([]Subrange, MaxLines)},
	} {
		for i := range tc.sub {
			if tc.name == "too many" {
				tc.sub[i] = Subrange{Start: uint32(10 * (i + 1)), Count: 1}
			}
		}
		if got, err := FullMap(5000000, tc.sub); !errors.Is(err, ErrMap) {
			t.Errorf("%s: %v, %v, want ErrMap", tc.name, got, err)
		}
	}
}

func TestIdentityMap(t *testing.T) {
	got := IdentityMap(Map{{0, 1000, 1}, {1, 100000, 65536}})
	if diff := cmp.Diff(Map{{0, 0, 1}, {1, 1, 65536}}, got); diff != "" {
		t.Error(diff)
	}
}

// What parses is valid, survives its own text form, and translates back and forth.
func FuzzParseMap(f *testing.F) {
	for _, seed := range []string{"0 1000 1\n1 100000 65536\n", "0 0 4294967295", "0 0 1\n0 0 1", "1 2", "4294967294 4294967294 1", "\t7 8 9 "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseMap(text)
		if err != nil {
			if !errors.Is(err, ErrMap) {
				t.Fatalf("error %v does not wrap ErrMap", err)
			}
			return
		}
		again, err := ParseMap(m.String())
		if diff := cmp.Diff(m, again); diff != "" || err != nil {
			t.Fatalf("%v\n%s", err, diff)
		}
		for _, r := range m {
			for _, id := range []uint32{r.Inside, r.Inside + r.Count - 1} {
				out, ok := m.ToOutside(id)
				back, ok2 := m.ToInside(out)
				if !ok || !ok2 || back != id {
					t.Fatalf("%d goes to %d and comes back as %d", id, out, back)
				}
				if id > m.Max() {
					t.Fatalf("%d is above Max %d", id, m.Max())
				}
			}
		}
	})
}
