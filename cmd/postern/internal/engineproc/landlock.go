package engineproc

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock can restrict, by the version of its interface (landlock(7)).
const (
	abiRefer    = 2
	abiTruncate = 3
	abiIoctlDev = 5
	abiScopes   = 6
	// abiAllThreads is the first that restricts all threads of a process at once.
	abiAllThreads = 8
	// erratumSignals is the bit of the erratum that lets a process's threads signal
	// each other whatever their domains (Linux 6.15 and stable releases).
	erratumSignals = 1 << 1
)

// landlockABI returns which version the kernel has. All failures mean none: it was
// not built in, not chosen at boot, or a container's system call filter bars it.
func landlockABI() (int, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, &absentError{"Landlock", errno}
	}
	return int(abi), nil
}

// fileRights are the rights to files that a version knows. Unix sockets, which later ones
// know too, are barred by the system call filter.
func fileRights(abi int) uint64 {
	rights := uint64(unix.LANDLOCK_ACCESS_FS_REFER - 1) // version 1 has all below
	for _, r := range []struct {
		since int
		right uint64
	}{
		{abiRefer, unix.LANDLOCK_ACCESS_FS_REFER},
		{abiTruncate, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{abiIoctlDev, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
	} {
		if abi >= r.since {
			rights |= r.right
		}
	}
	return rights
}

// scopes are what stays among processes of the same domain. Where each thread gets a
// domain of its own, signals cannot be scoped before the erratum: Go's threads
// interrupt each other. The system call filter bars signals to others too.
func scopes(abi int, errata uint64) uint64 {
	if abi < abiScopes {
		return 0
	}
	s := uint64(unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
	if abi >= abiAllThreads || errata&erratumSignals != 0 {
		s |= unix.LANDLOCK_SCOPE_SIGNAL
	}
	return s
}

// restrictFiles takes all rights to files but some from the threads that call is for;
// what is open stays so. No rule gives any back.
func restrictFiles(call caller, but uint64) error {
	abi, err := landlockABI()
	if err != nil {
		return err
	}
	errata, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_ERRATA)
	if errno != 0 {
		errata = 0 // a kernel that cannot be asked has not been mended
	}
	// A kernel takes more fields than it knows if they are zero.
	attr := unix.LandlockRulesetAttr{Handled_access_fs: fileRights(abi) &^ but, Scoped: scopes(abi, uint64(errata))}
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a Landlock ruleset: %w", errno)
	}
	defer unix.Close(int(ruleset))
	flags := uintptr(0)
	if abi >= abiAllThreads {
		call, flags = onThisThread, unix.LANDLOCK_RESTRICT_SELF_TSYNC
	}
	err = call(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, flags, 0)
	if errors.Is(err, unix.E2BIG) {
		return &absentError{"Landlock of its own", err} // 16 layers are around us
	}
	if err != nil {
		return fmt.Errorf("bar files with Landlock: %w", err)
	}
	return nil
}
