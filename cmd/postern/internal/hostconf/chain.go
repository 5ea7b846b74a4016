package hostconf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxLinks is how many symbolic links the kernel follows in one path
// (path_resolution(7)).
const maxLinks = 40

// watchedDirs returns the directories in which a change can lead path to another
// file: those that hold a symbolic link on the way, and the last one.
func watchedDirs(path string) []string {
	var dirs []string
	rest := components(path)
	at, links := "/", 0
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(next)
		switch {
		case err != nil:
			return add(dirs, at)
		case info.Mode()&os.ModeSymlink != 0:
			dirs = add(dirs, at)
			target, err := os.Readlink(next)
			if links++; err != nil || links > maxLinks {
				return dirs
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(components(target), rest...)
		case info.IsDir():
			at = next
		default:
			return add(dirs, at)
		}
	}
	return add(dirs, at)
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func add(dirs []string, dir string) []string {
	if slices.Contains(dirs, dir) {
		return dirs
	}
	return append(dirs, dir)
}
