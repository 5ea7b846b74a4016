package engineproc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// confined is the argument of an engine that was executed again by confine.
const confined = "confined"

// confine gives up for good, on all threads, what moving packets does not need (see
// the package comment). It returns which of the kernel's means are missing here, one
// line each; that a means which is there fails is an error.
//
// Privileges belong to threads, and Go may already have several. A binary without
// cgo can make a system call on all of them. With cgo it cannot, so this thread
// confines itself and executes the program again: all threads to come inherit.
func confine() (missing []string, err error) {
	again := len(os.Args) > 1 && os.Args[1] == confined
	if !again {
		err := dropAll(onAllThreads)
		if errors.Is(err, unix.ENOTSUP) {
			err = executeAgain()
		}
		if err != nil {
			return nil, fmt.Errorf("confine engine: %w", err)
		}
	}
	if err := checkPowerless(); err != nil {
		return nil, fmt.Errorf("confine engine: %w", err)
	}
	for _, step := range []func() error{
		func() error { return closeFiles(again) },
		filterCalls, // the last: it bars the calls of the others
	} {
		err := step()
		if absent, ok := errors.AsType[*absentError](err); ok {
			missing = append(missing, absent.Error())
		} else if err != nil {
			return nil, fmt.Errorf("confine engine: %w", err)
		}
	}
	return missing, nil
}

// absentError says that the kernel lacks a means of confinement.
type absentError struct {
	means string
	cause error
}

func (e *absentError) Error() string { return fmt.Sprintf("engine without %s: %v", e.means, e.cause) }
func (e *absentError) Unwrap() error { return e.cause }

// executeAgain confines this thread, as far as executing the program and loading its
// libraries allows, and executes it. It returns only when that fails.
func executeAgain() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := dropAll(onThisThread); err != nil {
		return err
	}
	const needed = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	if err := restrictFiles(onThisThread, needed); err != nil && !isAbsent(err) {
		return err
	}
	err := syscall.Exec("/proc/self/exe", []string{Name, confined}, []string{})
	return fmt.Errorf("execute it again: %w", err)
}

func isAbsent(err error) bool {
	_, ok := errors.AsType[*absentError](err)
	return ok
}

// checkPowerless checks what this thread, and so all, can still do, and bars others
// of the same user from looking into us. Root without CAP_SETPCAP gets capabilities
// back when it executes a program.
func checkPowerless() error {
	_, data, err := capabilities()
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data != [2]unix.CapUserData{} {
		return errors.New("some capabilities cannot be dropped (build postern with CGO_ENABLED=0)")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the dumpable flag: %w", err)
	}
	return nil
}

// closeFiles bars every file that is not open. After executeAgain that has been done.
func closeFiles(again bool) error {
	_ = time.Local.String() // for the log: reads /etc/localtime, once
	if again {
		_, err := landlockABI()
		return err
	}
	return restrictFiles(onAllThreads, 0)
}
