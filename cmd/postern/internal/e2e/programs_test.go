package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startRemote runs a program in the remote's namespace until the test ends, and
// waits until it listens.
func startRemote(t *testing.T, addr, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := lab.remote.do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	err := eventually(patience, func() error {
		return lab.remote.do(func() error {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err
		})
	})
	if err != nil {
		t.Fatalf("%s does not listen: %v: %s", name, err, out.String())
	}
}

// TestCurlNginx fetches from a real server with a real client.
func TestCurlNginx(t *testing.T) {
	curl, nginx := tool(t, "curl"), tool(t, "nginx")
	dir := t.TempDir()
	page := strings.Repeat("a page of some length\n", 50000)
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/log; events {}
http {
  access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  server { listen 0.0.0.0:%[2]s; listen [::]:%[2]s; root %[1]s; }
}`, dir, portNginx)
	if !lab.root {
		conf = "user root;\n" + conf
	}
	for name, text := range map[string]string{"conf": conf, "page": page} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	startRemote(t, net.JoinHostPort(remote4, portNginx), nginx, "-c", dir+"/conf", "-p", dir)
	overAllWays(t, func(t *testing.T, a account, w way) {
		for _, host := range []string{remote4, remote6, "web.e2e.test"} {
			url := "http://" + net.JoinHostPort(host, portNginx) + "/page"
			if got := a.mustRun(t, w.flags(), curl, "-sS", "-g", "--fail", url); got != page {
				t.Errorf("%s: %d bytes, want %d", url, len(got), len(page))
			}
		}
	})
}

// TestIperf runs the measuring program that everybody uses; figures are logged.
func TestIperf(t *testing.T) {
	iperf := tool(t, "iperf3")
	startRemote(t, net.JoinHostPort(remote4, portIperf), iperf, "-s", "-p", portIperf)
	overAllWays(t, func(t *testing.T, a account, w way) {
		for _, direction := range [][]string{nil, {"-R"}} {
			args := append([]string{iperf, "-c", remote4, "-p", portIperf, "-t", "1", "-f", "g"}, direction...)
			var out string
			err := eventually(patience, func() error { // a server that is still busy says so
				o := a.run(t, w.flags(), args...)
				out = o.out
				return failIf(o.code != 0, "%s%s", o.out, o.err)
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(direction, lastLine(out, "receiver"))
		}
	})
}

// lastLine returns the last line that contains mark.
func lastLine(text, mark string) (last string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, mark) {
			last = strings.TrimSpace(line)
		}
	}
	return last
}

// TestDirectBaseline logs what the same transfer makes without postern, for
// comparison, and so checks the servers.
func TestDirectBaseline(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr string) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		o := finish(ordinary(t).command(ctx, probe(), "@transfer", addr, fmt.Sprint(transferSize())))
		if o.code != 0 {
			t.Fatal(o.err)
		}
		t.Log(o.out)
	})
}
