package furnish

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
)

func TestWithin(t *testing.T) {
	tests := []struct {
		path, dir string
		want      bool
	}{
		{"/etc", "/etc", true},
		{"/etc/ssl", "/etc", true},
		{"/etcetera", "/etc", false},
		{"/", "/etc", false},
		{"/etc", "/", true},
		{"/var/tmp", "/tmp", false},
	}
	for _, tc := range tests {
		if got := within(tc.path, tc.dir); got != tc.want {
			t.Errorf("within(%q, %q) = %v", tc.path, tc.dir, got)
		}
	}
}

// TestLinkEntries: one link for each entry, links copied as they are.
func TestLinkEntries(t *testing.T) {
	dir := t.TempDir()
	original := filepath.Join(dir, ".ro1")
	for _, sub := range []string{original, filepath.Join(original, "sub")} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(original, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../elsewhere", filepath.Join(original, "link")); err != nil {
		t.Fatal(err)
	}
	if err := linkEntries(dir, original); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": ".ro1/file", "sub": ".ro1/sub", "link": "../elsewhere"} {
		if got, err := os.Readlink(filepath.Join(dir, name)); err != nil || got != want {
			t.Errorf("%s -> %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestLinkEntriesGone: links that the host makes and removes meanwhile are no failure.
func TestLinkEntriesGone(t *testing.T) {
	original := t.TempDir()
	var host sync.WaitGroup
	stop := make(chan struct{})
	host.Go(func() {
		for n := 0; ; n++ {
			path := filepath.Join(original, strconv.Itoa(n%100))
			select {
			case <-stop:
				return
			default:
			}
			err := os.Symlink("/x", path)
			if errors.Is(err, os.ErrExist) {
				err = os.Remove(path)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 50 {
		if err := linkEntries(t.TempDir(), original); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	host.Wait()
}

// TestStageAvoidsRelatives: nothing is put aside inside itself, and what cannot be
// bound (this test may not mount) is an error that names it.
func TestStageAvoidsRelatives(t *testing.T) {
	if slices.Contains(stages, "/etc") {
		t.Error("/etc is what is copied up most")
	}
	if err := copyUp("relative", ""); err == nil {
		t.Error("a relative directory was copied up")
	}
	if err := copyUp("/", ""); err == nil {
		t.Error("/ was copied up")
	}
}

func TestCoverInPlace(t *testing.T) {
	dir := t.TempDir()
	ours, target := filepath.Join(dir, "ours"), filepath.Join(dir, "target")
	for _, f := range []string{ours, target} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := openCover(target, ours)
	if err != nil {
		t.Fatal(err)
	}
	defer c.source.Close()
	if c.inPlace() {
		t.Error("another file was taken for ours")
	}
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	if c.inPlace() {
		t.Error("a missing file was taken for ours")
	}
	if err := os.Link(ours, target); err != nil {
		t.Fatal(err)
	}
	if !c.inPlace() {
		t.Error("our file was not recognised")
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCopies: whether a directory is copied up is told by where its path leads.
func TestCopies(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	p := Plan{CopyUp: []string{"/etc/", link}}
	for path, want := range map[string]bool{"/etc": true, dir: true, "/etc/ssl": false, "/": false} {
		if p.copies(path) != want {
			t.Errorf("copies(%q) = %v", path, !want)
		}
	}
}
