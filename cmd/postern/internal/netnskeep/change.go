package netnskeep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/spawn"
)

// startWithin bounds the start of a keeper, which takes some milliseconds.
const startWithin = 10 * time.Second

// keeperEnv is the keeper's environment: a process that only waits needs no
// more than one thread to run on and no parallel collector.
var keeperEnv = []string{"GOMAXPROCS=1", "GOGC=off"}

// Add makes a network namespace in a user namespace with these id maps, or in that
// of within if it is not nil, and a keeper of both. ErrExists if the name lives.
func (s Store) Add(ctx context.Context, name string, maps spawn.IDMaps, within *join.Target) (Kept, error) {
	unlock, err := s.lock()
	if err != nil {
		return Kept{}, err
	}
	defer unlock()
	if err := s.prune(name); err != nil {
		return Kept{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	k, end, err := s.start(ctx, name, maps, within)
	if err != nil {
		return Kept{}, fmt.Errorf("keep network namespace %s: %w", name, err)
	}
	err = os.Symlink(target(k.PID, userFD), k.UserPath)
	if err == nil {
		err = os.Symlink(target(k.PID, netFD), k.Path)
	}
	if err == nil && !k.keeps() {
		err = unix.ESRCH
	}
	if err != nil {
		end()
		_ = s.unlink(name)
		return Kept{}, fmt.Errorf("keep network namespace %s: %w", name, err)
	}
	return k, nil
}

// prune removes the links of the dead, and refuses a name that lives.
func (s Store) prune(name string) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	alive := 0
	for _, n := range names {
		_, err := s.Find(n)
		switch {
		case err == nil && n == name:
			return fmt.Errorf("network namespace %s: %w", name, ErrExists)
		case err == nil:
			alive++
		default:
			if err := s.unlink(n); err != nil {
				return err
			}
		}
	}
	if alive >= maxNames {
		return fmt.Errorf("network namespace %s: there are %d already, the most that are kept (postern netns del NAME)", name, alive)
	}
	return nil
}

// keeperProcess is what spawn's and join's processes have in common.
type keeperProcess interface{ Close() error }

// start starts the keeper and waits until it is ready; end ends it.
func (s Store) start(ctx context.Context, name string, maps spawn.IDMaps, within *join.Target) (k Kept, end func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return Kept{}, nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer r.Close()
	files := []*os.File{nil, nil, nil, w}
	var p keeperProcess
	if within == nil {
		var started *spawn.Process
		started, err = spawn.Start(ctx, spawn.Config{
			Maps: maps, Argv: []string{Name, name}, Env: keeperEnv, Files: files, Dir: "/", Setsid: true})
		if err == nil {
			p, k.PID = started, started.PID
		}
	} else {
		var started *join.Process
		started, err = within.Start(ctx, join.Command{
			Path: "/proc/self/exe", Argv: []string{Name, name, another}, Env: keeperEnv, Files: files, Dir: "/", Setsid: true})
		if err == nil {
			p, k.PID = started, started.PID
		}
	}
	_ = w.Close()
	if err != nil {
		return Kept{}, nil, err
	}
	end = func() { _ = p.Close() }
	if err := awaitReady(ctx, r); err != nil {
		end()
		return Kept{}, nil, err
	}
	path := s.dir + "/" + name
	return Kept{Name: name, PID: k.PID, Path: path, UserPath: path + userSuffix}, end, nil
}

// awaitReady reads what the keeper says.
func awaitReady(ctx context.Context, r *os.File) error {
	if deadline, ok := ctx.Deadline(); ok {
		_ = r.SetReadDeadline(deadline) // a pipe has deadlines
	}
	said, err := io.ReadAll(io.LimitReader(r, 1024))
	switch {
	case err != nil:
		return fmt.Errorf("wait for the keeper: %w", err)
	case len(said) == 0:
		return errors.New("the keeper ended before it was ready")
	case string(said) != ready:
		return errors.New(string(said))
	}
	return nil
}

// Del ends the keeper of a name and removes its links. The namespaces themselves
// end with the last process in them.
func (s Store) Del(name string) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	_, pidfd := s.open(name)
	if pidfd < 0 {
		if _, err := os.Lstat(s.dir + "/" + name); err != nil {
			return fmt.Errorf("network namespace %s: %w", name, ErrNone)
		}
		return s.unlink(name) // its keeper has died
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the keeper of network namespace %s: %w", name, err)
	}
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for n, err := unix.Poll(poll, int(startWithin.Milliseconds())); n != 1; n, err = unix.Poll(poll, int(startWithin.Milliseconds())) {
		if err == nil {
			return fmt.Errorf("end the keeper of network namespace %s: it is still there after %v", name, startWithin)
		} else if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the keeper of network namespace %s: %w", name, err)
		}
	}
	return s.unlink(name)
}

// unlink removes the links of a name, and nothing that is no link.
func (s Store) unlink(name string) error {
	for _, path := range []string{s.dir + "/" + name, s.dir + "/" + name + userSuffix} {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("remove %s: it is not of our making; remove it by hand", path)
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// lock makes the directory if need be and keeps other changes out. The directory
// is removed with its last name.
func (s Store) lock() (unlock func(), err error) {
	for {
		if err := os.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make directory %s: %w", s.dir, err)
		}
		fd, err := unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // removed between the two
		}
		if err != nil {
			return nil, fmt.Errorf("open directory %s: %w", s.dir, err)
		}
		for err = unix.Flock(fd, unix.LOCK_EX); errors.Is(err, unix.EINTR); {
			err = unix.Flock(fd, unix.LOCK_EX)
		}
		var held, named unix.Stat_t
		if err == nil && unix.Fstat(fd, &held) == nil && unix.Lstat(s.dir, &named) == nil && held.Ino == named.Ino {
			return func() {
				_ = unix.Rmdir(s.dir) // ENOTEMPTY as long as there are names
				_ = unix.Close(fd)
			}, nil
		}
		_ = unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("lock directory %s: %w", s.dir, err)
		}
	}
}
