package engineproc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// killed is what an attack that ends the process counts as.
const killed = syscall.Errno(0xffff)

func call(trap uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := syscall.Syscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func socket(family, kind, protocol int) func() error {
	return func() error {
		_, err := unix.Socket(family, kind, protocol)
		return err
	}
}

// parent is a process of the same user that is not in the sandbox.
func parent() uintptr { return uintptr(os.Getppid()) }

// attacks are what code in the engine may try, and what comes of it.
var attacks = map[string]struct {
	try  func() error
	want syscall.Errno
}{
	"open":     {func() error { _, err := os.ReadFile("/etc/passwd"); return err }, unix.EACCES},
	"create":   {func() error { _, err := os.Create("/tmp/postern-attack"); return err }, unix.EACCES},
	"stat":     {func() error { _, err := os.Stat("/etc/passwd"); return err }, unix.EACCES},
	"readlink": {func() error { _, err := os.Readlink("/proc/self/exe"); return err }, unix.EACCES},
	"unlink":   {func() error { return os.Remove("/tmp/postern-attack") }, unix.ENOSYS},
	"chmod":    {func() error { return os.Chmod("/tmp", 0o700) }, unix.ENOSYS},
	"chdir":    {func() error { return os.Chdir("/tmp") }, unix.ENOSYS},
	"memfd":    {func() error { _, err := unix.MemfdCreate("x", 0); return err }, unix.ENOSYS},
	"listen":   {func() error { return unix.Listen(0, 1) }, unix.ENOSYS},
	"clone3":   {func() error { return call(unix.SYS_CLONE3, 0, 88) }, unix.ENOSYS},

	"packet socket":     {socket(unix.AF_PACKET, unix.SOCK_RAW, 0), unix.EACCES},
	"raw socket":        {socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), unix.EACCES},
	"raw socket 6":      {socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6), unix.EACCES},
	"nf_tables socket":  {socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), unix.EACCES},
	"vsock":             {socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), unix.EACCES},
	"crypto socket":     {socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), unix.EACCES},
	"unix streams":      {socket(unix.AF_UNIX, unix.SOCK_STREAM, 0), unix.EACCES},
	"unix datagrams":    {socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0), unix.EACCES},
	"unix packets":      {socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0), unix.EACCES},
	"SCTP":              {socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), unix.EACCES},
	"multipath TCP":     {socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), unix.EACCES},
	"signal a stranger": {func() error { return unix.Kill(int(parent()), 0) }, unix.EACCES},
	"signal everybody":  {func() error { return unix.Kill(-1, 0) }, unix.EACCES},
	"signal a thread":   {func() error { return unix.Tgkill(int(parent()), int(parent()), 0) }, unix.EACCES},
	"signal by owner":   {func() error { _, err := unix.FcntlInt(0, unix.F_SETOWN, int(parent())); return err }, unix.EACCES},
	"type for the user": {func() error { return unix.IoctlSetPointerInt(2, unix.TIOCSTI, 'x') }, unix.EACCES},
	"executable memory": {func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	}, unix.EACCES},
	"be dumpable":   {func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }, unix.EACCES},
	"raise a limit": {func() error { return unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: 1}, nil) }, unix.EACCES},
	"limit another": {func() error { return unix.Prlimit(int(parent()), unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) }, unix.EACCES},

	"execve": {func() error { return unix.Exec("/bin/true", []string{"true"}, nil) }, killed},
	"fork":   {func() error { return call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)) }, killed},
	"new user namespace": {func() error {
		return call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	}, killed},
	"setns":             {func() error { return unix.Setns(0, unix.CLONE_NEWNET) }, killed},
	"unshare":           {func() error { return unix.Unshare(unix.CLONE_NEWUSER) }, killed},
	"ptrace":            {func() error { return unix.PtraceAttach(int(parent())) }, killed},
	"process_vm_readv":  {func() error { return call(unix.SYS_PROCESS_VM_READV, parent()) }, killed},
	"mount":             {func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }, killed},
	"chroot":            {func() error { return unix.Chroot("/") }, killed},
	"bpf":               {func() error { return call(unix.SYS_BPF, 0, 0, 0) }, killed},
	"io_uring":          {func() error { return call(unix.SYS_IO_URING_SETUP, 1, 0) }, killed},
	"perf_event_open":   {func() error { return call(unix.SYS_PERF_EVENT_OPEN) }, killed},
	"userfaultfd":       {func() error { return call(unix.SYS_USERFAULTFD) }, killed},
	"keyctl":            {func() error { return call(unix.SYS_KEYCTL) }, killed},
	"open by handle":    {func() error { return call(unix.SYS_OPEN_BY_HANDLE_AT) }, killed},
	"pidfd_getfd":       {func() error { return call(unix.SYS_PIDFD_GETFD) }, killed},
	"pidfd_send_signal": {func() error { return call(unix.SYS_PIDFD_SEND_SIGNAL) }, killed},
	"setuid":            {func() error { return call(unix.SYS_SETUID, 0) }, killed},
	"calls of x32":      {func() error { return call(0x40000000|unix.SYS_GETPID, 0) }, killed},
}

// tryRole makes an attack.
func tryRole(arg string) error {
	err := attacks[strings.ReplaceAll(arg, "+", " ")].try()
	var errno syscall.Errno
	errors.As(err, &errno)
	fmt.Printf("errno %d: %v\n", int(errno), err)
	return nil
}

// TestAttacks: nothing that code in the engine can try to get out succeeds.
func TestAttacks(t *testing.T) {
	if arch == 0 {
		t.Skip("there is no table of calls for this architecture")
	}
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := result(t, "try", strings.ReplaceAll(name, " ", "+"))
			if got := outcomeOf(t, text, err); got != a.want {
				t.Errorf("ends with %d, want %d: %s, %v", got, a.want, text, err)
			}
		})
	}
}

// outcomeOf is the error number that a role printed, or killed.
func outcomeOf(t *testing.T, text string, err error) syscall.Errno {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == unix.SIGSYS {
			return killed
		}
	}
	var errno int
	i := strings.LastIndex(text, "errno ")
	if err != nil || i < 0 {
		t.Fatalf("%v: %s", err, text)
	}
	if _, err := fmt.Sscanf(text[i:], "errno %d:", &errno); err != nil {
		t.Fatal(err)
	}
	return syscall.Errno(errno)
}

// checkedCalls are those whose arguments the filter looks at.
var checkedCalls = []uint32{
	unix.SYS_SOCKET, unix.SYS_FCNTL, unix.SYS_IOCTL, unix.SYS_TGKILL, unix.SYS_KILL, unix.SYS_PRCTL,
	unix.SYS_MMAP, unix.SYS_MPROTECT, unix.SYS_PRLIMIT64, unix.SYS_CLONE,
}

// uprobes are amd64's calls of the kernel's own trampolines, uretprobe and uprobe, which
// pass by filters; from elsewhere they end the caller (SIGILL).
var uprobes = []uint32{335, 336}

// lastCall is beyond the numbers of Linux 6.18.
const lastCall = 500

// everyRole makes every system call from a number on that is not allowed, until one
// kills it.
func everyRole(from string) error {
	first, err := strconv.Atoi(from)
	if err != nil {
		return err
	}
	for nr := uint32(first); nr < lastCall; nr++ {
		if slices.Contains(allowed, nr) || slices.Contains(checkedCalls, nr) || runtime.GOARCH == "amd64" && slices.Contains(uprobes, nr) {
			continue
		}
		fmt.Println("call", nr)
		if err := call(uintptr(nr)); !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EACCES) {
			fmt.Printf("let through: %d: %v\n", nr, err)
		}
	}
	fmt.Println("end")
	return nil
}

// TestEveryCall: no system call gets through that is in no list.
func TestEveryCall(t *testing.T) {
	if arch == 0 {
		t.Skip("there is no table of calls for this architecture")
	}
	deaths, next := 0, 0
	for next < lastCall {
		text, err := result(t, "every", strconv.Itoa(next))
		if strings.Contains(text, "let through") {
			t.Errorf("calls from %d on: %s", next, text)
		}
		if strings.HasSuffix(text, "end\n") && err == nil {
			break
		}
		i := strings.LastIndex(text, "call ")
		if i < 0 || outcomeOf(t, text+"errno 0:", err) != killed {
			t.Fatalf("calls from %d on: %v: %s", next, err, text)
		}
		var last uint32
		if _, err := fmt.Sscanf(text[i:], "call %d", &last); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(deadly, last) {
			t.Errorf("call %d kills and is in no list", last)
		}
		deaths, next = deaths+1, int(last)+1
	}
	if deaths != len(deadly) {
		t.Errorf("%d calls killed, want %d", deaths, len(deadly))
	}
	t.Logf("%d calls are allowed, %d by their arguments, %d kill", len(allowed), len(checkedCalls), deaths)
}
