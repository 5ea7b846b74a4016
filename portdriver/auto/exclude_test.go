package auto

import (
	"errors"
	"strings"
	"testing"
)

func TestExclusions(t *testing.T) {
	l, err := ParseExclusions("~22,~5000-6000,~53/udp,~80-81/tcp,~65535")
	if err != nil {
		t.Fatal(err)
	}
	if got := l.String(); got != "~22,~5000-6000,~53/udp,~80-81/tcp,~65535" {
		t.Errorf("as text: %s", got)
	}
	for _, tc := range []struct {
		port     uint16
		tcp, udp bool
	}{
		{22, true, true}, {21, false, false}, {23, false, false}, {5000, true, true}, {5500, true, true}, {6000, true, true},
		{6001, false, false}, {53, false, true}, {80, true, false}, {81, true, false}, {82, false, false}, {65535, true, true},
	} {
		if tcp, udp := l.Contains(tc.port, false), l.Contains(tc.port, true); tcp != tc.tcp || udp != tc.udp {
			t.Errorf("port %d: %t, %t; want %t, %t", tc.port, tcp, udp, tc.tcp, tc.udp)
		}
	}
	if l, err := ParseExclusions(""); l != nil || err != nil {
		t.Errorf("nothing: %v, %v", l, err)
	}
}

func TestWrongExclusions(t *testing.T) {
	for _, text := range []string{
		"22", "~", "~0", "~65536", "~-1", "~+1", "~1-", "~-", "~2-1", "~1-2-3", "~1/", "~1/sctp", "~1/tcp/udp", "~1, ~2", "~1,", ",",
		"~0x10", "~ 1", "~1_0", strings.Repeat("x", 1000),
	} {
		l, err := ParseExclusions(text)
		if !errors.Is(err, errExclusion) || len(err.Error()) > 200 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, %v", text, l, err)
		}
	}
	if _, err := ParseExclusions(strings.Repeat("~1,", MaxExclusions) + "~1"); err == nil {
		t.Error("a list without end was taken")
	}
}

func FuzzParseExclusions(f *testing.F) {
	f.Add("~22,~5000-6000,~53/udp")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseExclusions(text)
		if err != nil {
			return
		}
		again, err := ParseExclusions(l.String())
		if err != nil || again.String() != l.String() {
			t.Errorf("%q: %v, %v", text, l, err)
		}
	})
}
