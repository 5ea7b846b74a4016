package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lacks are what a machine may lack for the express path, with a word that the message
// about it must hold.
var lacks = map[string]string{
	"nf_tables":   "nf_tables",      // a kernel without it, or a container runtime that bars it
	"transparent": "IP_TRANSPARENT", // the same
}

// denyRole: WHAT UID GID PROGRAM ARG... — takes something away from this process and
// goes on as the user.
func denyRole(args []string) error {
	runtime.LockOSThread()
	var err error
	switch args[0] {
	case "sysctls":
		err = errors.Join(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	case "nf_tables":
		const netfilter = 12 // NETLINK_NETFILTER
		err = deny(unix.SYS_SOCKET, 0, unix.AF_NETLINK, 2, netfilter, unix.EPROTONOSUPPORT)
	case "transparent":
		err = errors.Join(deny(unix.SYS_SETSOCKOPT, 1, unix.SOL_IP, 2, unix.IP_TRANSPARENT, unix.EPERM),
			deny(unix.SYS_SETSOCKOPT, 1, unix.SOL_IPV6, 2, unix.IPV6_TRANSPARENT, unix.EPERM))
	default:
		err = fmt.Errorf("cannot take away %s", args[0])
	}
	if err != nil {
		return fmt.Errorf("take %s away: %w", args[0], err)
	}
	uid, err1 := strconv.Atoi(args[1])
	gid, err2 := strconv.Atoi(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if uid != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
			return err
		}
	}
	return syscall.Exec(args[3], args[3:], os.Environ())
}

// deny has a system call with two certain arguments fail (seccomp(2)).
func deny(call uint32, arg1, value1, arg2, value2 uint32, errno unix.Errno) error {
	argument := func(n uint32) uint32 { return 16 + 8*n } // of struct seccomp_data, low half
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	filter := []unix.SockFilter{
		load(0), unless(call, 5), load(argument(arg1)), unless(value1, 3), load(argument(arg2)), unless(value2, 1),
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Of all threads: the next program is executed by any of them.
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	return nil
}

// lacking is postern where something is missing.
func (a account) lacking(ctx context.Context, what string, args ...string) *exec.Cmd {
	cmd := a.command(ctx, probe(), append([]string{"@deny", what, strconv.Itoa(a.uid), strconv.Itoa(a.gid), lab.dir + "/postern"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	return cmd
}

// TestExpressMissing: without what the express path needs, --tcp=express says in a line
// what is missing, and --tcp=auto does without and says why when asked.
func TestExpressMissing(t *testing.T) {
	for what, word := range lacks {
		t.Run(what, func(t *testing.T) {
			a := ordinary(t)
			o := finish(a.lacking(t.Context(), what, "run", "--tcp", "express", "--", "true"))
			if o.code != 125 {
				t.Errorf("--tcp=express: exit code %d, want 125", o.code)
			}
			oneLine(t, o.err, "--tcp=express", word)
			i := a.launch(t, "less", a.lacking(context.Background(), what, "run", "--name", "less", "--", "cat"))
			i.mustExec(t, probe(), "@many", "2", "20", remote4, remote6)
			i.claims(t, "netstack", word)
		})
	}
}

// TestExpressReadOnlySysctls: the express path needs no file below /proc/sys, which are
// read-only in containers without privileges.
func TestExpressReadOnlySysctls(t *testing.T) {
	a := ordinary(t)
	i := a.launch(t, "less", a.lacking(context.Background(), "sysctls", "run", "--name", "less", "--tcp", "express", "--", "cat"))
	i.mayTalk = true // published ports do need them
	i.awaitExpress(t)
	i.claims(t, "express", "")
}

// claims wants everybody who can be asked to say the same about how TCP leaves.
func (i *inst) claims(t *testing.T, path, why string) {
	t.Helper()
	right := func(got tcpWay) bool {
		return got.Path == path && strings.Contains(got.Why, why) && (why == "") == (got.Why == "")
	}
	var info struct {
		TCP tcpWay `json:"tcp"`
	}
	_, answer, err := i.control().call("GET", "/v1/info", nil)
	if err := errors.Join(err, json.Unmarshal(answer, &info)); err != nil || !right(info.TCP) {
		t.Errorf("GET /v1/info: %s, %v; want %s because of %q", answer, err, path, why)
	}
	if got := i.express(t).TCP; !right(got) {
		t.Errorf("GET /v1/postern/status: %+v; want %s because of %q", got, path, why)
	}
	o := finish(i.postern(t.Context(), "ps", "--json"))
	var list []struct {
		TCP string `json:"tcp"`
		Why string `json:"tcp_why"`
	}
	if err := json.Unmarshal([]byte(o.out), &list); err != nil || len(list) != 1 || !right(tcpWay{list[0].TCP, list[0].Why}) {
		t.Errorf("postern ps --json: %s, %v; want %s because of %q", o.out, err, path, why)
	}
	if out := i.mustPS(t); !strings.Contains(out, path) {
		t.Errorf("postern ps: %s", out)
	}
	t.Logf("%+v", info.TCP)
}

// TestExpressChosen: what is asked for is what is in use, and everybody says so.
func TestExpressChosen(t *testing.T) {
	for _, c := range []struct{ flag, path, why string }{
		{"auto", "express", ""}, {"express", "express", ""}, {"netstack", "netstack", "--tcp=netstack"},
	} {
		t.Run(c.flag, func(t *testing.T) {
			i := ordinary(t).start(t, "chosen", "--tcp", c.flag)
			held := i.stand(t, "@hold", "addr="+remote4, "n=3")
			want := 0
			if c.path == "express" {
				want = 3
			}
			i.awaitFlows(t, 3, want)
			held.end(t)
			i.claims(t, c.path, c.why)
		})
	}
}
