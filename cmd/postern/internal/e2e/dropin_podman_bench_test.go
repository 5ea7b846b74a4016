package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPodmanFigures measures Podman with both programs, side by side. Nothing of it
// passes or fails by its figures:
//
//	POSTERN_E2E_LARGE=1 go test -v -run TestPodmanFigures ./cmd/postern/internal/e2e
func TestPodmanFigures(t *testing.T) {
	if !large() {
		t.Skip("POSTERN_E2E_LARGE=1 measures")
	}
	judge, ours := engines(t)
	both := bothPodmans{newPodman(t, judge), newPodman(t, ours)}
	both.startTimes(t)
	for _, p := range both {
		p.importImage(t, iperfImage, "busybox", "iperf3")
	}
	both.outFigures(t)
	for _, network := range []string{slirpNet, slirpPorts} {
		both.inFigures(t, network)
	}
}

// bothPodmans take turns, so that both have what the machine has to give at a time.
type bothPodmans [2]*podman

// iperfImage has iperf3 besides.
const iperfImage = "localhost/iperf"

// iperfTime is how long a transfer takes, seconds.
const iperfTime = "3"

// startTimes are how long podman takes to run and remove a container.
func (both bothPodmans) startTimes(t *testing.T) {
	const times = 10
	for _, network := range []string{slirpNet, "none"} {
		var all [2][]time.Duration
		for range times {
			for n, p := range both {
				o := p.call(t, "run", "--rm", "--network", network, podmanImage, "true")
				if o.code != 0 {
					t.Fatal(o.err)
				}
				all[n] = append(all[n], o.took.Round(time.Millisecond))
			}
		}
		for n, p := range both {
			slices.Sort(all[n])
			text := fmt.Sprintf("%v (%v to %v)", all[n][times/2], all[n][0], all[n][times-1])
			p.table.note(p.caller, "start to end, middle of 10, "+network, podmanRun(network, "--rm IMAGE true"), text)
		}
	}
}

// outFigures: the container sends to and receives from a server at the remote.
func (both bothPodmans) outFigures(t *testing.T) {
	startRemote(t, remote4+":"+portIperf, tool(t, "iperf3"), "-s", "-p", portIperf)
	for _, network := range []string{slirpNet, slirpNet + ":mtu=1500"} {
		for _, direction := range []string{"", "-R"} {
			command := strings.TrimSpace("iperf3 -c REMOTE -t " + iperfTime + " " + direction)
			for _, p := range both {
				p.try(t, command+", "+network, podmanRun(network, "--rm IMAGE "+command), func(t *testing.T) string {
					return p.transfer(t, func(ctx context.Context) *exec.Cmd {
						args := []string{"--log-level=error", "run", "--rm", "--network", network, iperfImage, "iperf3", "-J", "-c", remote4, "-p", portIperf, "-t", iperfTime}
						return p.cmd(ctx, p.path, append(args, strings.Fields(direction)...)...)
					})
				})
			}
		}
	}
}

// inFigures: clients on the host and at the remote use a published server. One after
// the other publishes on the same port.
func (both bothPodmans) inFigures(t *testing.T, network string) {
	for _, where := range []string{"host", "remote"} {
		argv := []string{tool(t, "iperf3"), "-c", "127.0.0.1"}
		if where == "remote" {
			argv = []string{tool(t, "nsenter"), "--net=" + lab.remote.path, argv[0], "-c", host4}
		}
		for _, direction := range []string{"", "-R"} {
			command := strings.TrimSpace("iperf3 -c HOST -p 18080 -t " + iperfTime + " " + direction)
			for _, p := range both {
				p.try(t, command+" from "+where+", "+network, podmanRun(network, "-d -p 18080:5201 IMAGE iperf3 -s; "+command), func(t *testing.T) string {
					p.must(t, "run", "--detach", "--name", "iperf", "--network", network, "--publish", podmanPort+":5201", iperfImage, "iperf3", "-s")
					defer p.remove(t, "iperf")
					return p.transfer(t, func(ctx context.Context) *exec.Cmd {
						args := append(append([]string(nil), argv[1:]...), "-J", "-p", podmanPort, "-t", iperfTime)
						return exec.CommandContext(ctx, argv[0], append(args, strings.Fields(direction)...)...)
					})
				})
			}
		}
	}
}

// transfer runs an iperf3 client until the server takes it, and returns the rate.
func (p *podman) transfer(t *testing.T, client func(context.Context) *exec.Cmd) (rate string) {
	t.Helper()
	err := eventually(patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		o := finish(client(ctx))
		var report struct {
			End struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(o.out), &report); err != nil || o.code != 0 || report.End.Received.Rate == 0 {
			return fmt.Errorf("exit code %d: %s%s (%w)", o.code, o.out, o.err, err)
		}
		rate = fmt.Sprintf("%.2f Gb/s", report.End.Received.Rate/1e9)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rate
}
