package spawn

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelFacts is what may stand behind a refused clone. Numbers are -1 where the
// kernel has no such setting.
type kernelFacts struct {
	apparmorRestrict int // kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
	usernsClone      int // kernel.unprivileged_userns_clone (Debian's patch)
	seccomp          int // 2: a filter is installed (proc(5), Seccomp)
	// limits are the user.max_*_namespaces that matter (namespaces(7)).
	limits map[string]int
	uid    uint32
}

// namespaceLimits are the limits of the namespaces that we create.
var namespaceLimits = []string{
	"max_user_namespaces", "max_net_namespaces", "max_mnt_namespaces",
	"max_pid_namespaces", "max_ipc_namespaces", "max_uts_namespaces", "max_cgroup_namespaces",
}

// goodLimit is a limit to suggest: what Fedora and RHEL document for rootless
// containers.
const goodLimit = 28633

// explained is clone's errno with cause and fix.
func explained(err error, cfg Config) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("create namespaces: %w", err)
	}
	why := explain(errno, gatherKernel())
	if why == "" {
		return fmt.Errorf("create namespaces: %w", err)
	}
	return fmt.Errorf("create namespaces: %w: %s", err, why)
}

// explain finds the likeliest cause of a refused clone(CLONE_NEWUSER…) and its
// fix; empty when nothing is known.
func explain(errno unix.Errno, f kernelFacts) string {
	switch errno {
	case unix.EPERM, unix.EACCES:
		return explainRefusal(f)
	case unix.ENOSPC, unix.EUSERS:
		for _, name := range namespaceLimits {
			if n, ok := f.limits[name]; ok && n == 0 {
				return fmt.Sprintf("user.%s is 0: ask for \"sysctl -w user.%s=%d\"", name, name, goodLimit)
			}
		}
		return fmt.Sprintf("too many namespaces, or user namespaces nested deeper than 32: end some, or ask for \"sysctl -w user.max_user_namespaces=%d\"", goodLimit)
	case unix.EINVAL:
		return "the kernel lacks user or network namespaces: one with CONFIG_USER_NS and CONFIG_NET_NS is needed"
	case unix.ENOSYS:
		return "the system call is barred by a seccomp filter: allow clone with CLONE_NEWUSER in the container's profile"
	case unix.EAGAIN:
		return "no process or memory limit left: see \"ulimit -u\""
	}
	return ""
}

func explainRefusal(f kernelFacts) string {
	switch {
	case f.uid != 0 && f.usernsClone == 0:
		return "kernel.unprivileged_userns_clone is 0: ask for \"sysctl -w kernel.unprivileged_userns_clone=1\""
	case f.uid != 0 && f.apparmorRestrict == 1:
		return "AppArmor bars user namespaces for programs without a profile: ask for a profile with \"userns,\" for this program, or for \"sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\""
	case f.seccomp == 2:
		return "a seccomp filter bars it: allow clone with CLONE_NEWUSER in the container's profile (Docker: --security-opt seccomp=unconfined)"
	}
	return "user namespaces are barred here: we may be in a chroot, or under a security module's policy"
}

// gatherKernel reads the settings that explain looks at.
func gatherKernel() kernelFacts {
	f := kernelFacts{
		apparmorRestrict: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
		usernsClone:      sysctl("kernel/unprivileged_userns_clone"),
		limits:           map[string]int{},
		uid:              uint32(os.Geteuid()),
	}
	for _, name := range namespaceLimits {
		f.limits[name] = sysctl("user/" + name)
	}
	// The result is 2 with a filter; the call itself is always allowed in mode 2
	// unless the filter bars prctl, which then shows as an error.
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err == nil {
		f.seccomp = mode
	}
	return f
}

// sysctl reads a number below /proc/sys; -1 when it is not there.
func sysctl(name string) int {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}
