package engineproc

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// caller makes a system call on the threads that it is for.
type caller func(trap, a1, a2, a3 uintptr) error

func onAllThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func onThisThread(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.RawSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// dropAll sets no_new_privs and empties the bounding, ambient, effective,
// permitted and inheritable sets. Without any capability the bounding set cannot
// be lowered, but with no_new_privs it means nothing either.
func dropAll(call caller) error {
	if err := call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	header, data, err := capabilities()
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		if err := dropBounding(call); err != nil {
			return fmt.Errorf("empty the bounding set: %w", err)
		}
	}
	err = call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel without ambient capabilities
		return fmt.Errorf("empty the ambient set: %w", err)
	}
	data = [2]unix.CapUserData{}
	err = call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// capabilities returns this thread's sets, and the header that means this thread.
func capabilities() (unix.CapUserHeader, [2]unix.CapUserData, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return header, data, err
}

// dropBounding removes every capability that the kernel knows from the bounding set.
func dropBounding(call caller) error {
	for c := uintptr(0); c < 64; c++ {
		err := call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // past the last one
		}
		if err != nil {
			return err
		}
	}
	return nil
}
