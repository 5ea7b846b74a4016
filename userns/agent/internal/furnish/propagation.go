package furnish

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// propagation is how a mode is reached: cut comes before anything is mounted, share
// after everything is. In between no mount is shared, since the kernel moves nothing
// that lies in a shared one (mount(2), MS_MOVE).
type propagation struct {
	cut, share uintptr
}

// propagations are the modes of mount_namespaces(7). The kernel has made the host's
// shared mounts slaves already, as the user namespaces differ: so none of these
// shows the host what is mounted here, and "private" and "slave" leave all mounts
// but the root as the kernel made them.
var propagations = map[string]propagation{
	"":         {cut: unix.MS_PRIVATE | unix.MS_REC},
	"rprivate": {cut: unix.MS_PRIVATE | unix.MS_REC},
	"private":  {cut: unix.MS_PRIVATE},
	"rslave":   {cut: unix.MS_SLAVE | unix.MS_REC},
	"slave":    {cut: unix.MS_SLAVE},
	"rshared":  {cut: unix.MS_SLAVE | unix.MS_REC, share: unix.MS_SHARED | unix.MS_REC},
	"shared":   {cut: unix.MS_SLAVE | unix.MS_REC, share: unix.MS_SHARED},
}

// cutPropagation keeps our mounts from the host's mount namespace, and with a
// private mode the host's later mounts out of ours.
func cutPropagation(mode string) error {
	p, known := propagations[mode]
	if !known {
		return fmt.Errorf("set mount propagation of /: unknown mode %q", mode)
	}
	return propagate(mode, p.cut)
}

// share shares the furnished mounts with the mount namespaces that are made from
// this one, if the mode says so.
func share(mode string) error {
	if flags := propagations[mode].share; flags != 0 {
		return propagate(mode, flags)
	}
	return nil
}

func propagate(mode string, flags uintptr) error {
	if err := unix.Mount("", "/", "", flags, ""); err != nil {
		return fmt.Errorf("set mount propagation of / to %s: %w", mode, err)
	}
	return nil
}
