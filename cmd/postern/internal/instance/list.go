package instance

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CreateNamed takes the directory of a name below root. An empty name is
// generated; generated names avoid those in use.
func CreateNamed(root, name string) (*Dir, string, error) {
	if name != "" {
		d, err := createPatiently(root, name)
		return d, name, err
	}
	const tries = 16 // a thousand names; sixteen misses in a row mean something else is wrong
	for range tries {
		name = Generate()
		d, err := createIn(root, name)
		if !errors.Is(err, ErrBusy) {
			return d, name, err
		}
	}
	return nil, "", fmt.Errorf("generate an instance name in %s: all tried are in use (choose one with --name)", root)
}

// createPatiently tries a busy name again shortly after: postern ps holds the lock
// of a dead instance's directory for the moment that it takes to remove it.
func createPatiently(root, name string) (*Dir, error) {
	const tries, pause = 4, 5 * time.Millisecond
	for n := 1; ; n++ {
		d, err := createIn(root, name)
		if n == tries || !errors.Is(err, ErrBusy) {
			return d, err
		}
		<-time.After(pause)
	}
}

func createIn(root, name string) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	d, err := Create(filepath.Join(root, name))
	if errors.Is(err, ErrBusy) {
		return nil, fmt.Errorf("name %s: %w (choose another --name)", name, ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	d.Adopt()
	return d, nil
}

// List returns the living instances below root by name. Directories of dead ones
// are removed on the way; what cannot be read or removed is skipped.
func List(root string) ([]Info, error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	var infos []Info
	for _, e := range entries {
		if !e.IsDir() || CheckName(e.Name()) != nil {
			continue
		}
		if i, alive := inspect(root, e.Name()); alive {
			infos = append(infos, i)
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// Find returns the living instance of a name.
func Find(root, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
		if i, alive := inspect(root, name); alive {
			return i, nil
		}
	}
	return Info{}, fmt.Errorf("instance %s: %w", name, ErrNone)
}

// inspect reads what is known of an instance. A dead one's directory is removed.
func inspect(root, name string) (i Info, alive bool) {
	d, err := createIn(root, name)
	if err == nil {
		_ = d.Close()
		return Info{}, false
	}
	if !errors.Is(err, ErrBusy) {
		return Info{}, false
	}
	i, err = read(filepath.Join(root, name))
	if err != nil {
		// Alive, but starting, ending or damaged: its name is all that is known.
		i = Info{}
	}
	i.Name = name
	return i, true
}

// read reads instance.json in the directory at path.
func read(path string) (Info, error) {
	d, err := open(path)
	if err != nil {
		return Info{}, err
	}
	defer d.drop()
	f, err := d.openFile(infoFile, unix.O_RDONLY)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInfo+1))
	if err != nil {
		return Info{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if len(b) > maxInfo {
		return Info{}, fmt.Errorf("read %s: longer than %d bytes", f.Name(), maxInfo)
	}
	return parseInfo(b)
}

// Words of generated names: short, distinct when spoken, all of a door and what
// passes through it.
var (
	adjectives = [...]string{
		"amber", "ashen", "bold", "brisk", "calm", "clear", "coral", "deft", "dusky", "early", "fair",
		"fleet", "gilt", "glad", "grey", "hardy", "ivory", "keen", "light", "lucid", "mild", "noble",
		"olive", "pale", "plain", "quiet", "ready", "rosy", "sable", "swift", "tidy", "warm",
	}
	nouns = [...]string{
		"arch", "badge", "bolt", "brook", "cargo", "clasp", "cove", "crane", "delta", "door", "ferry",
		"finch", "gable", "gate", "harbor", "hatch", "heron", "hinge", "inlet", "key", "knocker",
		"latch", "lintel", "otter", "porch", "quay", "sparrow", "stile", "swallow", "tern", "threshold",
		"wren",
	}
)

// Generate returns a random name of two words.
func Generate() string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return adjectives[int(b[0])%len(adjectives)] + "-" + nouns[int(b[1])%len(nouns)]
}
