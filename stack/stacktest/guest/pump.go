package guest

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// maxFrame is more than any frame of a TAP without vnet header.
const maxFrame = 65535 + 14

// Pump plays a virtual machine whose interface is a seqpacket socket: it carries frames
// between that and a TAP without vnet header, until one of them ends, for which wait
// waits. stop ends it too, and waits. It works on duplicates, which it makes non-blocking; both files stay the
// caller's.
func Pump(tapFile, socket *os.File) (wait, stop func(), err error) {
	a, err := pollable(tapFile)
	if err != nil {
		return nil, nil, err
	}
	b, err := pollable(socket)
	if err != nil {
		a.Close()
		return nil, nil, err
	}
	var done sync.WaitGroup
	stop = func() {
		if raw, err := b.SyscallConn(); err == nil { // the caller has it open too
			_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		}
		a.Close()
		b.Close()
		done.Wait()
	}
	carry := func(to, from *os.File) {
		buf := make([]byte, maxFrame)
		for {
			n, err := from.Read(buf)
			if err != nil || n == 0 {
				break
			}
			if _, err := to.Write(buf[:n]); errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) {
				break
			}
		}
		a.Close()
		b.Close()
	}
	done.Go(func() { carry(a, b) })
	done.Go(func() { carry(b, a) })
	return done.Wait, stop, nil
}

// pollable returns a duplicate that reading from can be ended.
func pollable(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	own, failed := -1, error(nil)
	err = raw.Control(func(fd uintptr) {
		if failed = unix.SetNonblock(int(fd), true); failed == nil {
			own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), f.Name()), nil
}

// cable puts a seqpacket socket before a TAP and returns the engine's end.
func cable(tb testing.TB, tapFile *os.File) *os.File {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "engine's end"), os.NewFile(uintptr(fds[1]), "guest's end")
	defer theirs.Close()
	_, stop, err := Pump(tapFile, theirs)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		stop()
		ours.Close()
	})
	return ours
}
