package bundle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/sys/unix"
)

// Bundle is a bundle that nobody else edits through this package until Close.
type Bundle struct {
	dir    string // absolute, without symbolic links
	handle *os.File
	text   []byte // config.json
	doc    object
}

// Change is an edit that was thought out but not made.
type Change struct {
	path     string
	old, new []byte
	original []byte // to be kept; nil for an undo
	files    map[string][]byte
}

// Open takes the bundle in a directory and waits for another editor to be done.
func Open(dir string) (*Bundle, error) {
	b, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("open bundle %s: %w", dir, err)
	}
	return b, nil
}

func open(dir string) (b *Bundle, err error) {
	b = &Bundle{}
	if b.dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if b.dir, err = filepath.EvalSymlinks(b.dir); err != nil {
		return nil, err
	}
	fd, err := unix.Open(b.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	b.handle = os.NewFile(uintptr(fd), b.dir)
	if err = unix.Flock(fd, unix.LOCK_EX); err == nil {
		err = b.load()
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bundle) load() (err error) {
	if b.text, err = readFile(b.path(configFile), maxConfig); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (umoci unpack or runc spec make one)", err)
	} else if err != nil {
		return err
	}
	if b.doc, err = parseObject(b.text, true); err != nil {
		return fmt.Errorf("%s: %w", configFile, err)
	}
	return b.checkRoot()
}

// checkRoot refuses a root file system that the bundle lies in: the container
// could then write what we keep.
func (b *Bundle) checkRoot() error {
	var root struct{ Path string }
	if err := decode(b.doc.get("root"), &root); err != nil {
		return fmt.Errorf("%s: root: %w", configFile, err)
	}
	path := root.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.dir, path)
	}
	rel, err := filepath.Rel(filepath.Clean(path), b.dir)
	if root.Path != "" && err == nil && (rel == "." || !strings.HasPrefix(rel, "..")) {
		return fmt.Errorf("%s: root.path %s holds the bundle itself; keep the root file system in a directory of its own", configFile, root.Path)
	}
	return nil
}

// Close lets others edit the bundle.
func (b *Bundle) Close() { _ = b.handle.Close() }

func (b *Bundle) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// Side is the path of SideDir.
func (b *Bundle) Side() string { return b.path(SideDir) }

// Hostname is what the container's host name will be, "" if that is not said.
func (b *Bundle) Hostname() string {
	var name string
	_ = decode(b.doc.get("hostname"), &name) // whatever is no text is the runtime's to refuse
	return name
}

// Exposed are the ports that the image says it listens on; see ParseExposed.
func (b *Bundle) Exposed() (ports []Exposed, others []string, err error) {
	annotations, err := b.doc.object("annotations", false)
	if err != nil {
		return nil, nil, err
	}
	var text string
	if err := decode(annotations.get(ExposedAnnotation), &text); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", ExposedAnnotation, err)
	}
	return ParseExposed(text)
}

// Claims are the annotations of our Prefix that were in the bundle before it was
// prepared: an image's, which Prepare removes.
func (b *Bundle) Claims() (map[string]string, error) {
	_, doc, err := b.original()
	if err != nil {
		return nil, b.explain("read", err)
	}
	annotations, err := doc.object("annotations", false)
	if err != nil {
		return nil, b.explain("read", err)
	}
	claims := make(map[string]string)
	for _, m := range annotations {
		if isOurAnnotation(m) {
			claims[m.key] = string(m.value)
		}
	}
	return claims, nil
}

// Prepare thinks out the edit that makes the bundle say what the plan says.
func (b *Bundle) Prepare(p Plan) (*Change, error) {
	original, doc, err := b.original()
	if err != nil {
		return nil, b.explain("prepare", err)
	}
	if err := apply(&doc, p, b.Side()); err != nil {
		return nil, b.explain("prepare", err)
	}
	text, err := layoutOf(original).format(doc)
	if err != nil {
		return nil, b.explain("prepare", err)
	}
	return &Change{
		path: b.path(configFile), old: b.text, new: text, original: original,
		files: map[string][]byte{resolvFile: p.ResolvConf, hostsFile: p.Hosts, sumFile: sum(text)},
	}, nil
}

// Undo thinks out the edit that takes Prepare's back. ErrNotPrepared when there was
// none.
func (b *Bundle) Undo() (*Change, error) {
	_, err := os.Lstat(b.path(SideDir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, b.explain("undo", fmt.Errorf("%w: there is no %s", ErrNotPrepared, b.path(SideDir, configFile)))
	}
	original, _, err := b.original()
	if err != nil {
		return nil, b.explain("undo", err)
	}
	return &Change{path: b.path(configFile), old: b.text, new: original}, nil
}

func (b *Bundle) explain(what string, err error) error {
	return fmt.Errorf("%s bundle %s: %w", what, b.dir, err)
}

// original is config.json without what is ours, as text and parsed.
func (b *Bundle) original() (text []byte, doc object, err error) {
	kept, err := readFile(b.path(SideDir, configFile), maxConfig)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kept = b.text // never prepared, or a copy without its side directory
	case err != nil:
		return nil, nil, err
	}
	before, err := parseObject(kept, true)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", b.path(SideDir, configFile), err)
	}
	written, err := readFile(b.path(SideDir, sumFile), maxConfig)
	if err == nil && bytes.Equal(written, sum(b.text)) {
		return kept, before, nil
	}
	doc = append(object(nil), b.doc...)
	if err := revert(&doc, before, b.Side()); err != nil {
		return nil, nil, err
	}
	if same(doc, b.doc) {
		return b.text, doc, nil // nothing of ours is in it: its bytes are the original
	}
	if text, err = layoutOf(b.text).format(doc); err != nil {
		return nil, nil, err
	}
	return text, doc, nil
}

// same compares documents, not their layout.
func same(a, b object) bool {
	x, errX := layout{}.format(a)
	y, errY := layout{}.format(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// sum is the line that sha256sum(1) prints for config.json.
func sum(text []byte) []byte { return fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(text), configFile) }

// Changed reports whether config.json becomes another.
func (c *Change) Changed() bool { return !bytes.Equal(c.old, c.new) }

// Diff is the edit of config.json in the form of diff -u, nothing if there is none.
func (c *Change) Diff() []byte { return diff.Diff(c.path, c.old, c.path, c.new) }

// Make makes the edit: it is done whole or not at all. What is kept beside is
// written before and removed after, so that no interruption loses the original.
func (b *Bundle) Make(c *Change) error {
	if err := b.make(c); err != nil {
		return fmt.Errorf("edit bundle %s: %w", b.dir, err)
	}
	return nil
}

func (b *Bundle) make(c *Change) error {
	if c.original == nil {
		if err := b.replaceConfig(c); err != nil {
			return err
		}
		return b.removeSide()
	}
	if err := b.makeSide(); err != nil {
		return err
	}
	if err := replace(b.path(SideDir, configFile), c.original, nil); err != nil {
		return err
	}
	for _, name := range []string{resolvFile, hostsFile} {
		if err := fill(b.path(SideDir, name), c.files[name]); err != nil {
			return err
		}
	}
	if err := replace(b.path(SideDir, sumFile), c.files[sumFile], nil); err != nil {
		return err
	}
	return b.replaceConfig(c)
}

func (b *Bundle) replaceConfig(c *Change) error {
	if !c.Changed() {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(c.path, &st); err != nil {
		return fmt.Errorf("examine %s: %w", c.path, err)
	}
	return replace(c.path, c.new, &st)
}
