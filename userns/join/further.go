package join

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// namespace is an open namespace of the target's process.
type namespace struct {
	kind int // its clone flag
	file *os.File
}

// further opens the namespaces that a command wants besides user and network, in
// the order in which they can be joined: the mount namespace last, because it
// changes what paths mean. One that is our own is left out: joining it would be
// no change, and only its owner may. On an error, those opened so far are
// returned too.
func (t *Target) further(cmd Command) ([]namespace, error) {
	var list []namespace
	for _, w := range []struct {
		wanted bool
		name   string
		kind   int
	}{
		{cmd.Cgroup, "cgroup", unix.CLONE_NEWCGROUP},
		{cmd.IPC, "ipc", unix.CLONE_NEWIPC},
		{cmd.UTS, "uts", unix.CLONE_NEWUTS},
		{cmd.PID, "pid", unix.CLONE_NEWPID},
		{cmd.Mount, "mnt", unix.CLONE_NEWNS},
	} {
		if !w.wanted {
			continue
		}
		if t.proc == nil {
			return list, fmt.Errorf("join the %s namespace of %s: %w", kinds[w.kind], t.name, ErrNoProcess)
		}
		f, err := t.openNS(w.name, w.kind)
		if err != nil {
			return list, err
		}
		list = append(list, namespace{kind: w.kind, file: f})
		same, err := sameFile(f, "/proc/self/ns/"+w.name)
		if err != nil {
			return list, fmt.Errorf("join the %s namespace of %s: %w", kinds[w.kind], t.name, err)
		}
		if same {
			f.Close()
			list = list[:len(list)-1]
		}
	}
	return list, nil
}

func closeFurther(list []namespace) {
	for _, n := range list {
		n.file.Close()
	}
}

func holds(list []namespace, kind int) bool {
	for _, n := range list {
		if n.kind == kind {
			return true
		}
	}
	return false
}
