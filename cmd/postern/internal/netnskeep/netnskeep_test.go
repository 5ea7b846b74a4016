package netnskeep

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUntouched(t *testing.T) {
	const smaps = `00400000-00900000 r-xp 00000000 08:01 42                         /usr/bin/postern
Rss:                2000 kB
Anonymous:             0 kB
00900000-00a00000 r--p 00500000 08:01 42                         /usr/bin/postern
Anonymous:             4 kB
00a00000-00b00000 rw-p 00600000 08:01 42                         /usr/bin/postern
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7fff00000000-7fff00001000 r-xp 00000000 00:00 0                  [vdso]
Anonymous:             0 kB
7ffe00000000-7ffe00001000 r--s 00000000 08:01 43                 /etc/x
Anonymous:             0 kB
`
	got := untouched(strings.NewReader(smaps))
	if d := cmp.Diff([]mapping{{0x400000, 0x900000}}, got, cmp.AllowUnexported(mapping{})); d != "" {
		t.Error(d)
	}
}

func TestCheckName(t *testing.T) {
	fine := func(string) error { return nil }
	if err := CheckName("web", fine); err != nil {
		t.Error(err)
	}
	if CheckName("web.user", fine) == nil {
		t.Error("the name of another's user namespace was accepted")
	}
	if CheckName("web", func(string) error { return os.ErrInvalid }) == nil {
		t.Error("an unsafe name was accepted")
	}
}

// TestDeadNames: links whose process is not a keeper of that name lead to nothing, and
// del removes them; files of others stay.
func TestDeadNames(t *testing.T) {
	root := t.TempDir()
	s := NewStore(root)
	self := strconv.Itoa(os.Getpid())
	for name, link := range map[string]string{
		"ended": "/proc/4194305/fd/100", "reused": "/proc/" + self + "/fd/100", "odd": "/etc/passwd", "other": "/proc/" + self + "/fd/1",
	} {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", userSuffix} {
			if err := os.Symlink(link, filepath.Join(s.dir, name+suffix)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Find(name); !errors.Is(err, ErrNone) {
			t.Errorf("Find(%s): %v, want ErrNone", name, err)
		}
		if err := s.Del(name); err != nil {
			t.Errorf("Del(%s): %v", name, err)
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := s.Del("never"); !errors.Is(err, ErrNone) {
		t.Errorf("Del of an unknown name: %v", err)
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Del("file"); err == nil {
		t.Error("a file that is no link was removed")
	}
	for _, name := range []string{"", "../x", "a/b"} {
		if _, err := s.Find(name); !errors.Is(err, ErrNone) {
			t.Errorf("Find(%q): %v", name, err)
		}
	}
}
