package join

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/rawfork"
)

// ErrNoSocket is wrapped by Make when we got in and the kernel then refused a socket.
var ErrNoSocket = errors.New("the kernel makes no such socket")

// Socket is a socket to make: the arguments of socket(2). SOCK_CLOEXEC is added.
type Socket struct {
	What                   string // for errors: "make a sock_diag socket"
	Domain, Type, Protocol int
}

// Make makes sockets in the target's network namespace, up to 60. What belongs to a
// namespace is decided when it is made, and its owner has all capabilities there
// (user_namespaces(7)): the caller can set options on the sockets, bind them and
// listen, also where that takes CAP_NET_ADMIN in there.
//
// sysctls are files below /proc/sys/net to open in the same visit. They belong to the
// namespace likewise. Settings has one for each, nil where there is none or where it
// cannot be written (EROFS, EACCES).
func (t *Target) Make(list []Socket, sysctls ...string) (sockets, settings []*os.File, err error) {
	s, sent := &rawfork.Script{}, rawfork.NewDescriptors(len(list))
	t.enter(s)
	for _, w := range list {
		s.Add(rawfork.Step{
			What: w.What, Nr: unix.SYS_SOCKET, Poke: sent.Next(),
			Args: [6]rawfork.Arg{rawfork.Int(w.Domain), rawfork.Int(w.Type | unix.SOCK_CLOEXEC), rawfork.Int(w.Protocol)},
		})
	}
	s.Send(sent)
	for _, sysctl := range sysctls {
		openIfWritable(s, sysctlDir+sysctl)
	}
	files, err := t.perform(s)
	switch {
	case err != nil && refused(err):
		return nil, nil, fmt.Errorf("%w: %w", ErrNoSocket, err)
	case err != nil:
		return nil, nil, err
	case len(files) < len(list):
		rawfork.CloseAll(files)
		return nil, nil, fmt.Errorf("enter %s: %d descriptors came back, want %d", t.name, len(files), len(list))
	}
	return files[:len(list)], sortSettings(files[len(list):], sysctls), nil
}

// sysctlDir is where the sysctls of a network namespace are.
const sysctlDir = "/proc/sys/net/"

// sortSettings tells by their names which of the sysctls have come.
func sortSettings(files []*os.File, sysctls []string) []*os.File {
	settings := make([]*os.File, len(sysctls))
	for _, f := range files {
		name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if i := slices.Index(sysctls, strings.TrimPrefix(name, sysctlDir)); i >= 0 && settings[i] == nil {
			settings[i] = f
		} else {
			f.Close()
		}
	}
	return settings
}

// openIfWritable sends a descriptor of the file in a message of its own, if it can.
func openIfWritable(s *rawfork.Script, path string) {
	sent, end := rawfork.NewDescriptors(1), s.NewLabel()
	s.Add(rawfork.Step{
		What: "open " + path, Nr: unix.SYS_OPENAT, Poke: sent.Next(),
		Args:   [6]rawfork.Arg{rawfork.Int(unix.AT_FDCWD), s.Path(path), rawfork.Int(unix.O_RDWR | unix.O_CLOEXEC)},
		Ignore: [3]syscall.Errno{unix.ENOENT, unix.EROFS, unix.EACCES}, Failed: end,
	})
	s.Send(sent)
	s.Place(end)
}
