package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// foreign is a process in namespaces that somebody else than postern made.
type foreign struct {
	account
	cmd *exec.Cmd
}

// newForeign has the account make a user and a network namespace.
func newForeign(t testing.TB, a account) *foreign {
	t.Helper()
	cmd := a.command(context.Background(), tool(t, "unshare"), "--user", "--map-root-user", "--net", "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &foreign{account: a, cmd: cmd}
	t.Cleanup(f.kill)
	awaitCommand(t, cmd.Process.Pid, "sleep")
	return f
}

func (f *foreign) pid() string { return strconv.Itoa(f.cmd.Process.Pid) }

// kill ends the process and waits for it.
func (f *foreign) kill() {
	if f.cmd.ProcessState == nil {
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
	}
}

// exec runs a command of the host in the namespaces.
func (f *foreign) exec(t testing.TB, command ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return finish(f.postern(ctx, append([]string{"exec", f.pid(), "--"}, command...)...))
}

func (f *foreign) mustExec(t testing.TB, command ...string) string {
	t.Helper()
	o := f.exec(t, command...)
	if o.code != 0 {
		t.Fatalf("postern exec %s -- %s: exit code %d\nstdout: %s\nstderr: %s", f.pid(), strings.Join(command, " "), o.code, o.out, o.err)
	}
	return o.out
}

// attach serves the namespaces.
func (f *foreign) attach(t testing.TB, args ...string) *inst {
	t.Helper()
	return f.begin(t, "served", append([]string{"attach", "--name", "served"}, args...)...)
}

// TestAttachPID serves a process's namespaces until the process ends (L1).
func TestAttachPID(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		f := newForeign(t, a)
		i := f.attach(t, append(w.flags(), f.pid())...)
		f.mustExec(t, probe(), "@many", "2", "20", remote4, remote6)
		i.mustExec(t, probe(), "@udpecho", remote4, "60000", "3")
		if out := i.mustPS(t); !strings.Contains(out, "served") || !strings.Contains(out, w.endpoint) {
			t.Errorf("postern ps: %s", out)
		}
		info, err := i.info()
		if err != nil {
			t.Fatal(err)
		}
		all := family(info.PID)
		f.kill()
		awaitGone(t, "kill -9 of the process", all, i.dir())
		if err := i.wait(t); err != nil {
			t.Errorf("postern attach: %v: %s", err, i.stderr)
		}
	})
}

// TestAttachPath serves namespaces by path until the path leads elsewhere (L2).
func TestAttachPath(t *testing.T) {
	for _, endpoint := range []string{"tap", "packet"} {
		for _, kind := range []string{"proc", "bind"} {
			t.Run(endpoint+"/"+kind, func(t *testing.T) {
				needEndpoint(t, endpoint)
				f := newForeign(t, ordinary(t))
				netns, userns := "/proc/"+f.pid()+"/ns/net", "/proc/"+f.pid()+"/ns/user"
				end := f.kill
				if kind == "bind" {
					netns, end = bindNS(t, netns)
				}
				args := []string{"--endpoint", endpoint, "--netns", netns}
				if endpoint == "tap" {
					args = append(args, "--userns", userns)
				}
				i := f.attach(t, args...)
				f.mustExec(t, probe(), "@many", "2", "20", remote4, remote6)
				info, err := i.info()
				if err != nil {
					t.Fatal(err)
				}
				all := family(info.PID)
				end()
				awaitGone(t, "the end of "+netns, all, i.dir())
				if err := i.wait(t); err != nil {
					t.Errorf("postern attach: %v: %s", err, i.stderr)
				}
			})
		}
	}
}

// bindNS binds a namespace to a file, as ip-netns(8) does, and returns how to
// undo that.
func bindNS(t testing.TB, ns string) (path string, undo func()) {
	t.Helper()
	f, err := os.CreateTemp(lab.dir, "netns")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := unix.Mount(ns, f.Name(), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	undo = func() { _ = errors.Join(unix.Unmount(f.Name(), unix.MNT_DETACH), os.Remove(f.Name())) }
	t.Cleanup(undo)
	return f.Name(), undo
}

// TestAttachForeignUser: whoever does not own the namespaces is refused in a line.
func TestAttachForeignUser(t *testing.T) {
	if !lab.root {
		t.Skip("needs a second user, so root")
	}
	f := newForeign(t, ordinary(t))
	o := finish(newAccount(t, lab.uid+1, lab.gid+1).postern(t.Context(), "attach", f.pid()))
	if o.code != 125 || strings.Count(o.err, "\n") != 1 || !strings.HasPrefix(o.err, "postern: ") {
		t.Errorf("exit code %d, said %q; want 125 and one line", o.code, o.err)
	}
	t.Log(strings.TrimSpace(o.err))
}

// unconfigured serves namespaces whose interface gets no addresses from postern.
func unconfigured(t *testing.T, w way, flags ...string) (*foreign, *inst) {
	t.Helper()
	f := newForeign(t, ordinary(t))
	args := append(append(w.flags(), "--configure=false"), flags...)
	return f, f.attach(t, append(args, f.pid())...)
}

// TestSLAAC: the kernel configures itself from the router advertisements.
func TestSLAAC(t *testing.T) {
	for _, w := range []way{{"tap", 1500}, {"packet", 65520}} {
		t.Run(w.endpoint, func(t *testing.T) {
			needEndpoint(t, w.endpoint)
			f, _ := unconfigured(t, w)
			start := time.Now()
			f.awaitIPv6(t, "fd00")
			t.Logf("the address is there after %v", time.Since(start).Round(time.Millisecond))
			f.mustExec(t, probe(), "@good", remote6, "3")
			out := f.mustExec(t, "cat", "/proc/net/if_inet6")
			if !strings.Contains(out, "fd000000000000") || strings.Contains(out, "fd000000000000000000000000000100") {
				t.Errorf("want an address of the kernel's own making in fd00::/64:\n%s", out)
			}
			if out := f.mustExec(t, "cat", "/proc/net/fib_trie"); strings.Contains(out, "10.0.2.") {
				t.Errorf("IPv4 is configured:\n%s", out)
			}
		})
	}
}

// awaitIPv6 waits until tap0 has an address whose hexadecimal form begins with
// prefix and which is known to be nobody else's.
func (f *foreign) awaitIPv6(t testing.TB, prefix string) {
	t.Helper()
	const tentative = 0x40 // IFA_F_TENTATIVE of linux/if_addr.h
	err := eventually(patience, func() error {
		out := f.mustExec(t, "cat", "/proc/net/if_inet6")
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			flags, err := strconv.ParseUint(fields[4], 16, 32)
			if err == nil && fields[5] == "tap0" && strings.HasPrefix(fields[0], prefix) && flags&tentative == 0 {
				return nil
			}
		}
		return errors.New(out)
	})
	if err != nil {
		t.Fatalf("no IPv6 address that begins with %s: %v\n%s", prefix, err, f.mustExec(t, "cat", "/proc/net/ipv6_route"))
	}
}

// TestUDHCPC: busybox's client gets a lease.
func TestUDHCPC(t *testing.T) {
	client := []string{tool(t, "busybox"), "udhcpc"}
	for _, w := range []way{{"tap", 1500}, {"packet", 65520}} {
		t.Run(w.endpoint, func(t *testing.T) {
			needEndpoint(t, w.endpoint)
			f, _ := unconfigured(t, w, "--dns-search", "e2e.test")
			script := writeScript(t, f.account, `[ "$1" = bound ] || exit 0
echo "lease ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu search=${search:-$domain}"
ip addr add "$ip/$mask" dev "$interface" && ip route add default via "$router"`)
			start := time.Now()
			out := f.mustExec(t, append(client, "-i", "tap0", "-f", "-n", "-q", "-t", "10", "-T", "1", "-O", "mtu", "-O", "search", "-s", script)...)
			t.Logf("%s after %v", lastLine(out, "lease"), time.Since(start).Round(time.Millisecond))
			for _, want := range []string{"ip=10.0.2.100", "mask=24", "router=10.0.2.2", "dns=10.0.2.3", "search=e2e.test", fmt.Sprintf("mtu=%d", w.mtu)} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in the lease: %s", want, out)
				}
			}
			f.mustExec(t, probe(), "@good", remote4, "1")
		})
	}
}

// TestDHClient: ISC's client gets leases for both families.
func TestDHClient(t *testing.T) {
	client := tool(t, "dhclient")
	for _, w := range []way{{"tap", 1500}, {"packet", 65520}} {
		t.Run(w.endpoint, func(t *testing.T) {
			needEndpoint(t, w.endpoint)
			f, _ := unconfigured(t, w, "--dns-search", "e2e.test")
			for _, c := range []struct {
				family string
				want   []string
			}{
				{"-4", []string{"address=10.0.2.100", "routers=10.0.2.2", "dns=10.0.2.3", fmt.Sprintf("mtu=%d", w.mtu)}},
				{"-6", []string{"address6=fd00::100", "dns6=fd00::3", "search6=e2e.test"}},
			} {
				f.awaitIPv6(t, "fe80") // which dhclient -6 asks from
				out := f.dhclient(t, client, c.family)
				for _, want := range c.want {
					if !strings.Contains(out, want) {
						t.Errorf("dhclient %s: no %q in the lease: %s", c.family, want, out)
					}
				}
				t.Log(lastLine(out, "lease"))
			}
		})
	}
}

// dhclient runs ISC's client until it has a lease and returns what its script saw.
func (f *foreign) dhclient(t *testing.T, client, family string) string {
	t.Helper()
	script := writeScript(t, f.account, `case $reason in PREINIT*) ip link set "$interface" up; exit 0;; BOUND*|REBIND*) ;; *) exit 0;; esac
echo "lease address=$new_ip_address routers=$new_routers dns=$new_domain_name_servers mtu=$new_interface_mtu" \
  "address6=$new_ip6_address dns6=$new_dhcp6_name_servers search6=$new_dhcp6_domain_search" >"$0.out.tmp"; mv "$0.out.tmp" "$0.out"`)
	conf := f.runtime + "/dhclient.conf"
	text := "timeout 30;\nrequest subnet-mask, routers, domain-name-servers, domain-search, interface-mtu, dhcp6.name-servers, dhcp6.domain-search;\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	cmd := f.postern(ctx, "exec", f.pid(), "--", client, family, "-d", "-1", "-cf", conf, "-lf", f.runtime+"/leases"+family,
		"-pf", f.runtime+"/pid"+family, "-sf", script, "tap0")
	var said lockedBuffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	}()
	var out []byte
	err := eventually(patience, func() (err error) {
		out, err = os.ReadFile(script + ".out")
		return err
	})
	if err != nil {
		t.Errorf("dhclient %s: no lease: %s", family, said.String())
	}
	return string(out)
}

// writeScript writes a shell script that the account may execute.
func writeScript(t testing.TB, a account, text string) string {
	t.Helper()
	f, err := os.CreateTemp(a.runtime, "script")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("#!/bin/sh\n" + text + "\n")
	if err := errors.Join(err, f.Chmod(0o755), f.Chown(a.uid, a.gid), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
