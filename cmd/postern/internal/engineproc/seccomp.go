package engineproc

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What happens to a call. Who makes one that only an intruder would make is killed. One
// that the filter does not know has not been implemented, so that a newer Go runtime or
// library falls back to what older kernels have.
const (
	allow   = unix.SECCOMP_RET_ALLOW
	kill    = unix.SECCOMP_RET_KILL_PROCESS
	refuse  = unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)
	unknown = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// x32 is the bit in the numbers of amd64's second set of calls, which the table does
// not describe. Other architectures have no numbers that high.
const x32 = 0x40000000

// threadFlags are the flags of clone(2) that make a thread: Go's and, for a binary
// with cgo, glibc's. None makes a namespace.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD |
	unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID | unix.CLONE_CHILD_SETTID | unix.CLONE_DETACHED

// sockets are what the engine makes: TCP, UDP and ping to the outside, and route
// netlink for the index of the interface that a link-local name server is reached by.
var sockets = []struct{ family, kind, protocol uint32 }{
	{unix.AF_INET, unix.SOCK_STREAM, 0},
	{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	{unix.AF_INET, unix.SOCK_DGRAM, 0},
	{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
	{unix.AF_INET6, unix.SOCK_STREAM, 0},
	{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	{unix.AF_INET6, unix.SOCK_DGRAM, 0},
	{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6},
	{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
}

// filterCalls installs the filter on all threads. A kernel that cannot kill a
// process by filter, before Linux 4.14, or an architecture without a table has none.
func filterCalls() error {
	if arch == 0 {
		return &absentError{"a system call filter", fmt.Errorf("no table for %s", runtime.GOARCH)}
	}
	action := uint32(kill)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return &absentError{"a system call filter", errno}
	}
	return newFilter(uint32(os.Getpid())).install()
}

// newFilter makes the filter for the process pid. Calls that are allowed whatever
// their arguments cost next to nothing: the kernel finds them when it gets the filter
// (Linux 5.11). So those with arguments come first, the most frequent before others.
func newFilter(pid uint32) filter {
	f := filter{load(offsetArch), unless(arch), ret(kill), load(offsetCall), atLeast(x32, 1), ret(kill)}
	f.checked(pid)
	for _, c := range allowed {
		f.on(c, ret(allow))
	}
	for _, c := range refused {
		f.on(c, ret(refuse))
	}
	for _, c := range deadly {
		f.on(c, ret(kill))
	}
	return append(f, ret(unknown))
}

// checked adds the calls whose arguments matter.
func (f *filter) checked(pid uint32) {
	f.socket()
	f.onArg(unix.SYS_FCNTL, 1, refuse, unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD, unix.F_DUPFD_CLOEXEC,
		unix.F_SETPIPE_SZ, unix.F_GETPIPE_SZ)
	// Not TIOCSTI: the log may be the user's terminal.
	f.onArg(unix.SYS_IOCTL, 1, refuse, unix.SIOCINQ, unix.TUNSETVNETHDRSZ, unix.TUNSETOFFLOAD)
	// Signals to ourselves.
	f.onArg(unix.SYS_TGKILL, 0, refuse, pid)
	f.onArg(unix.SYS_KILL, 0, refuse, pid)
	// Names that Go gives to its memory.
	f.onArg(unix.SYS_PRCTL, 0, refuse, unix.PR_SET_VMA)
	// No memory with code in it that was not there.
	for _, c := range []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT} {
		f.on(c, loadArg(2), anyOf(unix.PROT_EXEC, 1), ret(refuse), ret(allow))
	}
	// Our own limits, for reading: who, and the pointer to new ones.
	f.on(unix.SYS_PRLIMIT64, loadArg(0), equal(0, 5), loadArg(2), equal(0, 3), loadHigh(2), equal(0, 1), ret(allow), ret(refuse))
	f.on(unix.SYS_CLONE, loadArg(0), anyOf(^uint32(threadFlags), 1), ret(kill), anyOf(unix.CLONE_THREAD, 1), ret(allow), ret(kill))
}

func (f *filter) socket() {
	var body []unix.SockFilter
	const types = 0xf // SOCK_TYPE_MASK of the kernel; flags stand above
	for _, s := range sockets {
		body = append(body, loadArg(0), equal(s.family, 6),
			loadArg(1), and(types), equal(s.kind, 3),
			loadArg(2), equal(s.protocol, 1), ret(allow))
	}
	f.on(unix.SYS_SOCKET, append(body, ret(refuse))...)
}
