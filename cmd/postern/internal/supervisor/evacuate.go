package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Evacuation makes room for cgroups of the command's own. A cgroup may either hold
// processes or hand controllers to cgroups below it (cgroups(7), "no internal
// processes"). The command's cgroup namespace has our cgroup as its root; so all
// that is in there, we and the agent included, moves to one cgroup below, and then
// the root hands on every controller that it has. This is what RootlessKit's flag of
// the same name does.

// evacuationRounds bounds how often the processes are listed anew: one that forks
// while it is moved may leave its child behind.
const evacuationRounds = 8

// cgroupFix is how to come by a cgroup that one may change.
const cgroupFix = "start it in a cgroup of version 2 that is delegated to you, as with \"systemd-run --user --scope -p Delegate=yes\""

// evacuate moves the processes of our cgroup to the cgroup name below it, where the
// process agent has to arrive, and hands the controllers on. What is not moved or
// handed on besides is complained about.
func evacuate(name string, agent int, log *slog.Logger) error {
	from, err := ownCgroup("/proc/self/cgroup", "/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("evacuate the cgroup: %w", err)
	}
	to := filepath.Join(from, name)
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("evacuate the cgroup: %w; %s", err, cgroupFix)
	}
	if err := writeCgroup(to, "cgroup.procs", strconv.Itoa(agent)); err != nil {
		return fmt.Errorf("evacuate the cgroup: move the command to %s: %w; %s", to, err, cgroupFix)
	}
	if err := moveAll(from, to); err != nil {
		log.Warn("processes stay behind in the command's root cgroup, so that controllers may be missing", "cause", err)
	}
	controllers, err := os.ReadFile(filepath.Join(from, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("evacuate the cgroup: %w", err)
	}
	for _, controller := range strings.Fields(string(controllers)) {
		if err := writeCgroup(from, "cgroup.subtree_control", "+"+controller); err != nil {
			log.Warn("a controller is not to be had in the command's cgroups", "controller", controller, "cause", err)
		}
	}
	return nil
}

// moveAll moves processes until none is left, or none can be moved; then the error
// is the last one's.
func moveAll(from, to string) error {
	var last error
	for range evacuationRounds {
		pids, err := cgroupProcs(from)
		if err != nil {
			return err
		}
		moved := 0
		last = nil
		for _, pid := range pids {
			err := writeCgroup(to, "cgroup.procs", strconv.Itoa(pid))
			switch {
			case err == nil:
				moved++
			case !errors.Is(err, unix.ESRCH): // it has ended
				last = fmt.Errorf("process %d: %w", pid, err)
			}
		}
		if moved == 0 {
			return last
		}
	}
	return last
}

// cgroupProcs lists the processes of a cgroup. Those that our PID namespace has no
// number for are left out.
func cgroupProcs(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, word := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// writeCgroup writes one value, as the kernel wants it: one write each.
func writeCgroup(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// ownCgroup is the directory of our cgroup of version 2, by the texts of
// proc_pid_cgroup(5) and proc_pid_mountinfo(5).
func ownCgroup(cgroupFile, mountFile string) (string, error) {
	text, err := os.ReadFile(cgroupFile)
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile(mountFile)
	if err != nil {
		return "", err
	}
	group, found := cgroup2Of(text)
	if !found {
		return "", errors.New("this kernel has no cgroups of version 2; --evacuate-cgroup2 is about those")
	}
	dir, found := mountedAt(mounts, group)
	if !found {
		return "", fmt.Errorf("no mounted hierarchy of version 2 shows our cgroup %s; %s", group, cgroupFix)
	}
	return dir, nil
}

// cgroup2Of finds the line of the hierarchy of version 2, "0::PATH".
func cgroup2Of(text []byte) (group string, found bool) {
	for line := range bytes.Lines(text) {
		if group, found := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "0::"); found {
			return group, true
		}
	}
	return "", false
}

// mountedAt finds the directory of a cgroup. Both its path and the roots of mounts
// are relative to the root of our cgroup namespace; a mount may show a part only.
func mountedAt(mountinfo []byte, group string) (dir string, found bool) {
	for line := range bytes.Lines(mountinfo) {
		fields := strings.Fields(string(line))
		// ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [OPTIONAL]... - TYPE SOURCE OPTIONS
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+2 || fields[dash+1] != "cgroup2" {
			continue
		}
		root := unescape(fields[3])
		rest, below := strings.CutPrefix(group, strings.TrimSuffix(root, "/"))
		if below && (rest == "" || rest[0] == '/') {
			return path.Join(unescape(fields[4]), rest), true
		}
	}
	return "", false
}

// unescape undoes mountinfo's octal escapes of blanks and backslashes.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
