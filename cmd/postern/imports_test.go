package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/postern-net/postern/"

// listedPackage is what go list says of a package of ours.
type listedPackage struct {
	Dir        string
	ImportPath string
	Name       string
	Imports    []string
	GoFiles    []string
	CgoFiles   []string
}

// topLevel is all that may stand in the repository's root.
var topLevel = []string{"cmd", "stack", "userns", "portdriver", "proto", "go.mod", "go.sum", "README.md", "LICENSE",
	".ci", ".gitignore", ".git"}

// mayImport says which of our top-level directories each may import, besides itself.
var mayImport = map[string][]string{
	"cmd":        {"portdriver", "stack", "userns", "proto"},
	"portdriver": {"stack", "userns", "proto"},
	"stack":      {"proto"},
	"userns":     {"proto"},
	"proto":      {},
}

// ourPackages lists the module's packages; nil when there is no go command, as in
// a stage of the tests that runs as another user.
func ourPackages(t *testing.T) []listedPackage {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the go command is missing, and CI=true")
		}
		t.Skip("needs the go command")
	}
	cmd := exec.Command(tool, "list", "-json", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %s", exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	var all []listedPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

// place splits an import path of ours into its top-level directory and the rest.
func place(path string) (top string, ours bool) {
	rest, ours := strings.CutPrefix(path, module)
	top, _, _ = strings.Cut(rest, "/")
	return top, ours
}

func TestImportDirection(t *testing.T) {
	for _, p := range ourPackages(t) {
		from, _ := place(p.ImportPath)
		allowed, known := mayImport[from]
		if !known {
			t.Errorf("%s: no such top-level directory is planned", p.ImportPath)
			continue
		}
		for _, path := range p.Imports {
			if to, ours := place(path); ours && to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: imports run one way", p.ImportPath, path)
			}
		}
	}
}

// TestGVisorStaysInStack: its types appear in stack and stack/internal only, and in
// stack/stacktest, which tests them.
func TestGVisorStaysInStack(t *testing.T) {
	found := false
	for _, p := range ourPackages(t) {
		inner := p.ImportPath == module+"stack" || p.ImportPath == module+"stack/stacktest" ||
			strings.HasPrefix(p.ImportPath, module+"stack/internal/")
		for _, path := range p.Imports {
			if !strings.HasPrefix(path, "gvisor.dev/") {
				continue
			}
			found = true
			if !inner {
				t.Errorf("%s imports %s", p.ImportPath, path)
			}
		}
	}
	if !found {
		t.Error("no package imports gVisor; this test looks for the wrong name")
	}
}

func TestNoCgo(t *testing.T) {
	for _, p := range ourPackages(t) {
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: %v", p.ImportPath, p.CgoFiles)
		}
	}
}

// maxFileLines is the longest that a file may be; house rule.
const maxFileLines = 800

func TestFileLength(t *testing.T) {
	for _, p := range ourPackages(t) {
		for _, name := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), "\n"); n > maxFileLines {
				t.Errorf("%s/%s has %d lines, at most %d are wanted", p.ImportPath, name, n, maxFileLines)
			}
		}
	}
}

// maxMainLines bounds main.go, which only calls run.
const maxMainLines = 20

func TestMainIsShort(t *testing.T) {
	b, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > maxMainLines {
		t.Errorf("main.go has %d lines, at most %d are wanted", n, maxMainLines)
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(topLevel, e.Name()) {
			// What git ignores (a built binary, a profile) does not count.
			if exec.Command("git", "-C", "../..", "check-ignore", "-q", e.Name()).Run() != nil {
				t.Errorf("%s stands in the repository's root", e.Name())
			}
		}
	}
}
