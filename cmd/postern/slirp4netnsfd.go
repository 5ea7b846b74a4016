package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/slirpcli"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
)

// adoptSlirp takes over the descriptors that the options name.
func adoptSlirp(o *slirpcli.Options, cfg *supervisor.AttachConfig) (err error) {
	for _, d := range []struct {
		name string
		fd   int
		into **os.File
	}{
		{"--ready-fd", o.ReadyFD, &cfg.ReadyFD},
		{"--exit-fd", o.ExitFD, &cfg.ExitFD},
		{"--netns-type=tapfd", o.TAPFD, &cfg.TAP},
	} {
		if d.fd < 0 {
			continue
		}
		if *d.into, err = adopt(d.name, d.fd); err != nil {
			return err
		}
	}
	return nil
}

// adopt takes over a descriptor that our caller left open for us. What is marked
// close-on-exec cannot have come from there: it is one of the Go runtime's own that
// happens to have the number.
func adopt(what string, fd int) (*os.File, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return nil, fmt.Errorf("%s %d: no open descriptor came with that number", what, fd)
	}
	if fd > int(unix.Stderr) {
		return os.NewFile(uintptr(fd), fmt.Sprintf("%s %d", what, fd)), nil
	}
	return adoptStandard(what, fd)
}

// adoptStandard takes over a standard stream. Closing it later is to be seen on its
// other side, and the number must not come to mean a file of ours, which then would
// get our messages: so it means /dev/null from now on.
func adoptStandard(what string, fd int) (*os.File, error) {
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, int(unix.Stderr)+1)
	if err != nil {
		return nil, fmt.Errorf("%s %d: %w", what, fd, err)
	}
	f := os.NewFile(uintptr(moved), fmt.Sprintf("%s %d", what, fd))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		err = unix.Dup3(int(null.Fd()), fd, 0)
		_ = null.Close()
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s %d: %w", what, fd, err)
	}
	return f, nil
}
