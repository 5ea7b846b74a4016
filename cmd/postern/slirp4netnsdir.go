package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// placeInstance decides where the instance's directory is: with the user's others,
// where postern ps finds it, or, where there is no runtime directory of the user's,
// in a temporary one of its own, which remove takes away.
//
// The last resort of postern itself, /tmp/postern-UID, is none here: in a user
// namespace UID is 0 for every user of the machine, and the first would lock the
// others out.
func (a *app) placeInstance(cfg *supervisor.Config) (remove func() error, err error) {
	runtimeDir := a.getenv("XDG_RUNTIME_DIR")
	places := instance.Places{RuntimeDir: runtimeDir, Temp: os.DevNull} // nothing can be made below that
	if root, err := places.Root(); err == nil && unix.Access(root, unix.W_OK|unix.X_OK) == nil {
		_, _ = instance.List(root) // removes what the last one left that RootlessKit has killed
		cfg.RuntimeDir = runtimeDir
		return func() error { return nil }, nil
	}
	sweep(filepath.Join(temporary(), temporaryPattern))
	if cfg.StateDir, err = os.MkdirTemp(temporary(), temporaryPattern); err != nil {
		return nil, fmt.Errorf("make a directory for the instance: %w (set TMPDIR or XDG_RUNTIME_DIR to a directory of yours)", err)
	}
	return func() error {
		if err := os.Remove(cfg.StateDir); err != nil {
			return fmt.Errorf("remove the instance's directory: %w", err)
		}
		return nil
	}, nil
}

// temporaryPattern is what temporary instance directories are called.
const temporaryPattern = "postern-slirp4netns-*"

// longestName is room for what os.MkdirTemp makes of temporaryPattern (up to ten
// digits for the star) and the name of the control socket in there.
const longestName = len("/"+temporaryPattern) + 10 + len("/api.sock")

// temporary is the directory for temporary directories: $TMPDIR, unless a socket in
// there would have a path that is too long.
func temporary() string {
	if dir := os.TempDir(); filepath.IsAbs(dir) && len(dir)+longestName <= instance.MaxSocketPath {
		return dir
	}
	return "/tmp"
}

// Bounds of sweep: a directory younger than that may be one whose instance is just
// starting, and a start has no time for more than so many.
const (
	sweepAge = time.Minute
	sweepMax = 32
)

// sweep removes temporary directories whose instance was killed: the lock in there
// is free. RootlessKit kills so. What cannot be removed stays.
func sweep(pattern string) {
	dirs, _ := filepath.Glob(pattern) // the pattern is well-formed
	for _, dir := range dirs[:min(len(dirs), sweepMax)] {
		st, err := os.Lstat(dir)
		if err != nil || time.Since(st.ModTime()) < sweepAge {
			continue
		}
		if d, err := instance.Create(dir); err == nil {
			d.Adopt()
			_ = d.Close()
		}
	}
}
