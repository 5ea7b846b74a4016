package spawn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns"
	"github.com/postern-net/postern/userns/subid"
)

// gather looks at the machine and at ourselves.
func gather(ctx context.Context, mode Mode, from subid.Kind) (facts, error) {
	f := facts{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), from: from}
	if mode == Single {
		return f, nil // nothing else is asked
	}
	f.user = username(f.uid)
	f.ranges, f.rangesErr = subid.Lookup(ctx, subid.Source{Kind: from}, f.user, f.uid)
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	f.noNewPrivs = err == nil && nnp == 1
	if f.privileged, err = maySetIDs(); err != nil {
		return facts{}, err
	}
	if f.privileged {
		if f.outerUID, err = readMap("/proc/self/uid_map"); err != nil {
			return facts{}, err
		}
		if f.outerGID, err = readMap("/proc/self/gid_map"); err != nil {
			return facts{}, err
		}
		return f, nil
	}
	f.uidTool = findTool("newuidmap")
	f.gidTool = findTool("newgidmap")
	return f, nil
}

// username is the name that the subordinate ids are listed under. A user whom
// /etc/passwd does not know (a directory service's, or a container's random uid)
// is taken at his word; newuidmap checks it.
func username(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	for _, key := range []string{"USER", "LOGNAME"} {
		if v := os.Getenv(key); v != "" {
			return v
		}
	}
	return number
}

// maySetIDs reports whether we may write any map ourselves: CAP_SETUID and
// CAP_SETGID in our own user namespace (user_namespaces(7)).
func maySetIDs() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read our capabilities: %w", err)
	}
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return data[0].Effective&need == need, nil
}

func readMap(path string) (userns.Map, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := userns.ParseMap(string(b))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

// findTool finds newuidmap or newgidmap in PATH or where distributions put it; a
// user's PATH may lack the system's directories.
func findTool(name string) tool {
	t := tool{name: name}
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/bin", "/run/wrappers/bin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		return t
	}
	t.path = path
	t.weak = !gainsPrivilege(path)
	return t
}

// gainsPrivilege reports whether executing path makes one privileged: setuid root
// or file capabilities, on a filesystem that honours them. What cannot be found
// out counts as yes; the attempt will show.
func gainsPrivilege(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return true
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(path, &sfs); err == nil && sfs.Flags&unix.ST_NOSUID != 0 {
		return false
	}
	if st.Mode&unix.S_ISUID != 0 {
		return true
	}
	_, err := unix.Getxattr(path, "security.capability", nil)
	return !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, fs.ErrNotExist)
}
