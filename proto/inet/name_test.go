package inet

import (
	"bytes"
	"strings"
	"testing"
)

func TestAppendName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	long := strings.Repeat(label63+".", 3)
	for _, c := range []struct {
		name, want string
		ok         bool
	}{
		{"example.com", "\x07example\x03com\x00", true},
		{"example.com.", "\x07example\x03com\x00", true},
		{"corp", "\x04corp\x00", true},
		{label63, "\x3f" + label63 + "\x00", true},
		{"", "", false},
		{".", "", false},
		{"a..b", "", false},
		{".a", "", false},
		{label63 + "a", "", false},
		{long + strings.Repeat("b", 62), "", false},
	} {
		got, ok := AppendName([]byte("x"), c.name)
		if ok != c.ok || string(got) != "x"+c.want {
			t.Errorf("%q: %q %v, want %q %v", c.name, got, ok, c.want, c.ok)
		}
	}
	if got, ok := AppendName(nil, long+strings.Repeat("b", 61)); !ok || len(got) != 255 {
		t.Errorf("a name of 255 bytes: %d bytes, %v", len(got), ok)
	}
}

func TestAppendNamesSkipsWhatDoesNotFit(t *testing.T) {
	names := []string{"aa", "bad..name", "much.too.long.for.this", "b"}
	got := AppendNames([]byte("x"), names, 7)
	if want := []byte("x\x02aa\x00\x01b\x00"); !bytes.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := AppendNames(nil, names, 0); len(got) != 0 {
		t.Errorf("%q in no room", got)
	}
}
