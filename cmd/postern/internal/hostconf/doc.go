// Package hostconf follows the host's resolver configuration.
//
// The file is often a symbolic link, sometimes of several steps, and it changes in
// every way that files can: written in place, emptied, replaced by rename,
// deleted and made again, its link pointed elsewhere, its target's directory
// appearing late. A watch on the file itself would miss most of that. So the
// watcher walks the path as the kernel does and watches each directory that
// holds a link of the chain, the file, or the place where the walk fails. After
// every event it waits for the storm to settle, walks again, and reads the file.
// A slow poll covers what inotify cannot see (network file systems, bind mounts,
// no watches left).
//
// The content decides: events without a change of what the file says are not
// reported.
package hostconf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/dns"
)

// Path is the host's resolver configuration (resolv.conf(5)).
const Path = "/etc/resolv.conf"

// maxFile bounds what is read of the file.
const maxFile = 64 << 10

// Read reads a resolver configuration. A file that does not exist says as much
// as an empty one: no servers. O_NONBLOCK keeps a FIFO from holding us up.
func Read(path string) (dns.ResolvConf, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return dns.ResolvConf{}, nil
	}
	if err != nil {
		return dns.ResolvConf{}, fmt.Errorf("read the host's name servers: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return dns.ResolvConf{}, fmt.Errorf("read the host's name servers: %w", err)
	}
	return dns.ParseResolvConf(text), nil
}
