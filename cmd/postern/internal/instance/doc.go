// Package instance keeps the directory of a running instance.
//
//	$XDG_RUNTIME_DIR/postern/NAME/
//	    lock           held (flock) as long as the instance lives
//	    instance.json  what `postern ps` shows
//	    child_pid      the container's process, decimal, as RootlessKit writes it
//	    api.sock       the control socket
//	    resolv.conf    bound over the command's /etc/resolv.conf
//	    hosts          bound over the command's /etc/hosts
//	    netns          only with a detached network namespace, which it is in the
//	                   command's mount namespace; an empty file elsewhere
//
// The lock tells the living from the stale: the kernel drops it however the
// owner ends. A directory whose lock is free is taken over after its known files
// have been removed; an unknown file is never removed, nor is one of a type or
// owner that we do not make. The lock file is checked after locking to be the
// one that still has the name, so that of many starts exactly one wins.
//
// Every file is opened by a single name relative to the directory's descriptor,
// without following a symbolic link (O_NOFOLLOW), and the directories are checked
// to be ours and closed to others. Another user can therefore neither read the
// state nor make us write elsewhere.
package instance

import (
	"errors"
	"fmt"
)

// Names of the files in the directory.
const (
	lockFile   = "lock"
	infoFile   = "instance.json"
	pidFile    = "child_pid"
	socketFile = "api.sock"
	resolvFile = "resolv.conf"
	hostsFile  = "hosts"
	netnsFile  = "netns"
)

// MaxSocketPath is the longest path that a unix socket can be bound to:
// sun_path has 108 bytes with the closing zero (unix(7)).
const MaxSocketPath = 107

// ErrBusy is wrapped when a living instance has the name already.
var ErrBusy = errors.New("an instance of this name is running")

// ErrNone is wrapped when there is no living instance of a name.
var ErrNone = errors.New("no such running instance (see postern ps)")

// maxName is the longest name, that of a host name label (RFC 1035 section 2.3.4).
const maxName = 63

// kept is the name of the directory that named network namespaces have among those of
// the instances (package netnskeep).
const kept = "netns"

// CheckName refuses names that are no safe directory names: an instance may be
// called what is safe as a file name and as an argument,
// ^[a-z0-9][a-z0-9_.-]{0,62}$, but not "netns".
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for i := range len(name) {
		c := name[i]
		alphanumeric := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		ok = ok && (alphanumeric || i > 0 && (c == '_' || c == '.' || c == '-'))
	}
	if !ok {
		return fmt.Errorf("instance name %q: want 1 to %d of a-z, 0-9, '_', '.', '-', the first a letter or digit", name, maxName)
	}
	if name == kept {
		return fmt.Errorf("instance name %q: it is the directory of named network namespaces (postern netns); choose another", name)
	}
	return nil
}
