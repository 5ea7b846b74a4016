package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// IPv6 of containers behind a bridge, with addresses of their own (RFC 4193) that the
// caller's rules masquerade.

// sixOut looks how a container's client over IPv6 has ended. slirp4netns says where the
// way out is by advertisement alone, and leaves accept_ra at 1: CNI and Docker switch
// forwarding on for their bridges, and Linux drops the route at that moment.
func (k *rootlessKit) sixOut(t *testing.T, o outcome) (remark string) {
	t.Helper()
	switch {
	case o.code == 0:
	case !k.ours && strings.Contains(o.out+o.err, "network is unreachable"):
		return "✗ network is unreachable: no default route once forwarding is on"
	default:
		t.Fatalf("exit code %d: %s%s", o.code, o.out, o.err)
	}
	return ""
}

// dualStack runs a container behind a bridge with both families.
func (s *containerdStory) dualStack(t *testing.T) {
	s.step(t, "dual-stack container", "nerdctl run --net dual -p [::]:8086:80 (CNI as nerdctl)", func(t *testing.T) string {
		s.runIn(t, "dual", "six", portMapping{"::", 8086, 80, "tcp"})
		return ""
	})
}

// overIPv6 tells what that container reaches, and who reaches it, and removes it.
func (s *containerdStory) overIPv6(t *testing.T) {
	s.step(t, "v6 out", "", func(t *testing.T) string {
		remark := s.sixOut(t, s.try("six", "@many", "2", "20", remote6))
		if remark == "" {
			return s.sixOut(t, s.try("six", "@udpecho", remote6, "1200", "3"))
		}
		s.acceptAdvertisements(t)
		return remark + "; ✓ after sysctl net.ipv6.conf.tap0.accept_ra=2"
	})
	s.step(t, "published TCP, IPv6", "curl http://["+host6+"]:8086/", func(t *testing.T) string {
		defer s.remove(t, "six")
		to := "[" + host6 + "]:8086"
		if s.old {
			return s.oldFetch(t, to)
		}
		seen := s.fetch(t, "six", lab.remote, to)
		if s.personality && seen != remote6 {
			t.Errorf("nginx saw %s for %s", seen, remote6)
		}
		return fmt.Sprintf("(nginx saw %s)", seen)
	})
}

// try runs the probe in a container.
func (s *containerdStory) try(id string, args ...string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return finish(s.running.beside(ctx, append([]string{"ctr", "task", "exec", "--exec-id", "try", id, "/bin/probe"}, args...)...))
}

// acceptAdvertisements does what slirp4netns would have to do, and has the interface
// ask for an advertisement again. Then the way out has to be there.
func (s *containerdStory) acceptAdvertisements(t *testing.T) {
	t.Helper()
	s.running.mustInside(t, "sh", "-ec", `cd /proc/sys/net/ipv6/conf/tap0
echo 2 >accept_ra; echo 0 >accept_dad; echo 1 >disable_ipv6; echo 0 >disable_ipv6`)
	if err := eventually(patience, func() error {
		o := s.try("six", "@many", "2", "20", remote6)
		return failIf(o.code != 0, "%s", o.err)
	}); err != nil {
		t.Error(err)
	}
}

// oldFetch is fetch through RootlessKit 1.1, whose own client comes from ::1. CNI's
// portmap sends it on to the container, where the kernel takes nothing from a loopback
// address: for IPv6 portmap has no rule that masquerades it.
func (s *containerdStory) oldFetch(t *testing.T, to string) (remark string) {
	t.Helper()
	var o outcome
	_ = lab.remote.do(func() error {
		o = finish(exec.Command(tool(t, "curl"), "-sS", "--fail", "--max-time", "1", "http://"+to+"/"))
		return nil
	})
	if seen := s.seenBy("six"); o.code == 0 && len(seen) > 0 {
		return fmt.Sprintf("(nginx saw %s)", seen[0])
	}
	return "✗ no answer: its builtin driver comes from ::1, for which portmap has no masquerade"
}

// TestAdvertisedRouteForwarding: a default route that came by advertisement outlasts the
// moment when somebody switches forwarding on, and who wants no advertisements gets none.
func TestAdvertisedRouteForwarding(t *testing.T) {
	needEndpoint(t, "tap")
	const conf = "/proc/sys/net/ipv6/conf/"
	for before, after := range map[string]string{"0": "0", "1": "2", "2": "2"} {
		t.Run("accept_ra="+before, func(t *testing.T) {
			f := newForeign(t, ordinary(t))
			f.mustExec(t, "sh", "-c", "echo "+before+" >"+conf+"default/accept_ra")
			f.attach(t, "--endpoint", "tap", "--configure=false", f.pid())
			if got := strings.TrimSpace(f.mustExec(t, "cat", conf+"tap0/accept_ra")); got != after {
				t.Errorf("accept_ra is %s, want %s", got, after)
			}
			if after == "0" {
				return
			}
			f.awaitIPv6(t, "fd00")
			f.mustExec(t, "sh", "-c", "echo 1 >"+conf+"all/forwarding")
			f.mustExec(t, probe(), "@good", remote6, "1")
		})
	}
}
