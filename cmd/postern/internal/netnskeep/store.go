package netnskeep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrExists is wrapped when a living namespace has the name, ErrNone when none has.
var (
	ErrExists = errors.New("a network namespace of this name exists (see postern netns list)")
	ErrNone   = errors.New("no network namespace of this name (see postern netns list)")
)

// userSuffix ends the link to the user namespace.
const userSuffix = ".user"

// maxNames bounds the names in one directory: each is a process.
const maxNames = 1024

// Store is the directory of names, root/netns, where root is that of the instances
// and closed to other users.
type Store struct{ dir string }

// NewStore returns the store below root.
func NewStore(root string) Store { return Store{filepath.Join(root, "netns")} }

// Kept is a named network namespace.
type Kept struct {
	Name string `json:"name"`
	// PID is the keeper's.
	PID int `json:"pid"`
	// NetNS and UserNS are inode numbers, as readlink of /proc/PID/ns/net shows them.
	NetNS  uint64 `json:"netns"`
	UserNS uint64 `json:"userns"`
	// Path and UserPath lead to the namespaces.
	Path     string `json:"path"`
	UserPath string `json:"user_path"`
}

// CheckName refuses names that are unsafe as file names or that clash with others'.
func CheckName(name string, safe func(string) error) error {
	if err := safe(name); err != nil {
		return fmt.Errorf("name of a network namespace: %w", err)
	}
	if strings.HasSuffix(name, userSuffix) {
		return fmt.Errorf("name of a network namespace %q: must not end in %q, which the link to the user namespace has", name, userSuffix)
	}
	return nil
}

// Find returns the living namespace of a name.
func (s Store) Find(name string) (Kept, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return Kept{}, fmt.Errorf("network namespace %q: %w", name, ErrNone)
	}
	if k, fd := s.open(name); fd >= 0 {
		_ = unix.Close(fd)
		return k, nil
	}
	return Kept{}, fmt.Errorf("network namespace %s: %w", name, ErrNone)
}

// List returns the living namespaces by name.
func (s Store) List() ([]Kept, error) {
	names, err := s.names()
	list := []Kept{}
	for _, name := range names {
		if k, err := s.Find(name); err == nil {
			list = append(list, k)
		}
	}
	return list, err
}

// names lists the names that there are links of, dead ones too.
func (s Store) names() ([]string, error) {
	dir, err := os.Open(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(3 * maxNames)
	if err != nil && len(entries) == 0 {
		return nil, nil // io.EOF: empty
	}
	var names []string
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 {
			names = append(names, strings.TrimSuffix(e.Name(), userSuffix))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// open holds the keeper of a name by a pidfd and then makes sure that it is one:
// its command line has the name, and its descriptors are namespaces. -1 if not.
func (s Store) open(name string) (k Kept, pidfd int) {
	k = Kept{Name: name, Path: filepath.Join(s.dir, name)}
	k.UserPath = k.Path + userSuffix
	link, err := os.Readlink(k.Path)
	if err != nil {
		return k, -1
	}
	if n, err := fmt.Sscanf(link, "/proc/%d/fd/", &k.PID); n != 1 || err != nil || link != target(k.PID, netFD) {
		return k, -1
	}
	if pidfd, err = unix.PidfdOpen(k.PID, 0); err != nil {
		return k, -1
	}
	if !k.keeps() {
		_ = unix.Close(pidfd)
		return k, -1
	}
	return k, pidfd
}

// keeps looks at the process and fills in the namespaces.
func (k *Kept) keeps() bool {
	words, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k.PID))
	if err != nil || !strings.HasPrefix(string(words), Name+"\x00"+k.Name+"\x00") {
		return false
	}
	return inode(target(k.PID, netFD), "net", &k.NetNS) && inode(target(k.PID, userFD), "user", &k.UserNS)
}

// inode reads "net:[4026531840]".
func inode(path, kind string, into *uint64) bool {
	link, err := os.Readlink(path)
	if err != nil {
		return false
	}
	n, err := fmt.Sscanf(link, kind+":[%d]", into)
	return n == 1 && err == nil
}

// target is what a link leads to.
func target(pid, fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", pid, fd) }
