// Package furnish arranges a fresh mount namespace for the user's command.
//
// The namespace starts as a copy of the host's mounts. Mounting in it is
// invisible to the host once propagation is cut, which comes first. Then /proc
// and /sys are made to show the new pid and network namespaces, directories the
// user named become writable copies, and /etc/resolv.conf and /etc/hosts are
// covered with the instance's own files.
//
// That cover has an enemy: when the host replaces the file beneath it (rename or
// unlink, as network managers do), the kernel detaches mounts on it in every
// other mount namespace, and the command would see the host's file. A watcher
// therefore follows /proc/self/mountinfo and covers the file again.
//
// Where the network namespace is detached, the command lives in the host's and
// sees the host's: /sys, /etc/resolv.conf, /etc/hosts and the sysctls stay as they
// are, and the new namespace is a file (netns.go). The same holds where there is
// no new one at all.
package furnish

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Plan says what to arrange.
type Plan struct {
	// Detached is a network namespace beside the process's own, which is the
	// host's then; it is bound to the file NetNS. Nil: there is none. It stays the
	// caller's.
	Detached *os.File
	NetNS    string
	// ResolvConf and Hosts are the files that cover /etc/resolv.conf and
	// /etc/hosts; empty: no cover.
	ResolvConf, Hosts string
	// HostNet says that the process's network namespace is the host's without a
	// detached one too.
	HostNet bool
	// Loopback brings the loopback interface of the process's network namespace up.
	Loopback bool
	// Cgroup2 shows the process's cgroup namespace at /sys/fs/cgroup, in place of
	// the host's hierarchies.
	Cgroup2 bool
	// Propagation is one of mount_namespaces(7)'s ways, with an r for the whole
	// tree; empty means "rprivate".
	Propagation string
	// CopyUp lists absolute directories to be made writable copies.
	CopyUp []string
	// Proc says that a pid namespace wants its own /proc.
	Proc bool
}

// House is a furnished namespace; its zero value is an empty one.
type House struct {
	watch *watcher
}

// Close stops what keeps the house in order; the mounts stay.
func (h House) Close() {
	if h.watch != nil {
		h.watch.close()
	}
}

// Furnish carries the plan out in the calling process's mount namespace, which
// must not be the host's. Notices say what had to be left as it was.
func Furnish(p Plan) (h House, notices []string, err error) {
	if err := cutPropagation(p.Propagation); err != nil {
		return House{}, nil, err
	}
	covers, err := openCovers(p)
	if err != nil {
		return House{}, nil, err
	}
	if p.Proc {
		if err := mountProc(); err != nil {
			return House{}, nil, err
		}
	}
	home := p.home()
	if notices, err = p.system(home); err != nil {
		return House{}, notices, err
	}
	if err := p.arrange(home); err != nil {
		return House{}, notices, err
	}
	for _, c := range covers {
		if err := c.put(); err != nil {
			return House{}, notices, err
		}
	}
	if err := share(p.Propagation); err != nil {
		return House{}, notices, err
	}
	if len(covers) == 0 {
		return House{}, notices, nil
	}
	watch, err := watchCovers(covers)
	if err != nil {
		return House{}, notices, err
	}
	return House{watch: watch}, notices, nil
}

// system makes the kernel's file systems show the new namespaces.
func (p Plan) system(home string) (notices []string, err error) {
	if p.Detached == nil && !p.HostNet {
		if err := mountSys(home); err != nil {
			notices = append(notices, err.Error())
		}
		openPing()
		if p.Loopback {
			if err := loopbackUp(); err != nil {
				return notices, err
			}
		}
	}
	if p.Cgroup2 {
		return notices, mountCgroup2()
	}
	return notices, nil
}

// arrange makes the copies, then binds the detached network namespace, whose path
// may lead through one.
func (p Plan) arrange(home string) error {
	for _, dir := range p.CopyUp {
		if err := copyUp(dir, home); err != nil {
			return err
		}
	}
	if p.Detached == nil {
		return nil
	}
	return bindNetNS(p.Detached, p.NetNS)
}

// copies reports whether dir is among the directories that are copied up.
func (p Plan) copies(dir string) bool {
	return slices.ContainsFunc(p.CopyUp, func(d string) bool { return resolved(d) == resolved(dir) })
}

// home is the instance's directory, empty if the plan names no file in it.
func (p Plan) home() string {
	for _, file := range []string{p.ResolvConf, p.NetNS} {
		if file != "" {
			return filepath.Dir(file)
		}
	}
	return ""
}

// mountProc mounts a /proc of the new pid namespace. The kernel allows that only
// if no part of the present /proc is covered, which containers often do.
func mountProc() error {
	err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount /proc for --pidns: %w (parts of /proc are covered, as in most containers; run without --pidns)", err)
	}
	if err != nil {
		return fmt.Errorf("mount /proc for --pidns: %w", err)
	}
	return nil
}

// openPing lets every mapped group open ping sockets in the new network
// namespace (icmp(7), ping_group_range), so that ping needs no file capability.
// Where /proc/sys is read-only, root inside can still ping with raw sockets.
func openPing() {
	last, err := lastGID()
	if err != nil {
		return
	}
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", fmt.Appendf(nil, "0 %d", last), 0)
}
