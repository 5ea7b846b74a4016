package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// redisRequests is how many requests each test of redis-benchmark makes.
func redisRequests() int {
	if large() {
		return 200000
	}
	return 4000
}

// TestPublishedRedis: redis-server, published, under redis-benchmark.
func TestPublishedRedis(t *testing.T) {
	server, bench := tool(t, "redis-server"), tool(t, "redis-benchmark")
	overSettings(t, []setting{{"run", "tap", "splice"}, {"run", "packet", "netstack"}}, func(t *testing.T, s setting) {
		a := ordinary(t)
		needEndpoint(t, s.endpoint)
		where := [][]string{{"-h", "127.0.0.1", "-p", "8379"}}
		flags := []string{"run", "--name", "redis", "--endpoint", s.endpoint, "--port-driver", s.driver, "-p", "8379:6379"}
		if s.driver == "splice" {
			where = append(where, []string{"-s", a.runtime + "/redis.sock"})
			flags = append(flags, "-p", "unix:"+a.runtime+"/redis.sock:6379")
		}
		i := a.begin(t, "redis", append(flags, "--", server, "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", a.runtime, "--logfile", a.runtime+"/log")...)
		answering(t, "127.0.0.1:8379")
		for _, where := range where {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			o := finish(a.command(ctx, bench, append(where, "-t", "ping_mbulk,set,get,lrange_100", "-n", strconv.Itoa(redisRequests()), "-c", "50", "-d", "512", "--csv")...))
			cancel()
			if o.code != 0 || o.err != "" || strings.Count(o.out, "\n") < 5 || strings.Contains(strings.ToLower(o.out), "error") {
				t.Errorf("redis-benchmark: exit code %d\n%s%s", o.code, o.out, o.err)
			}
			t.Logf("%v\n%s", where, o.out)
		}
		if n := i.mustStatus(t).EngineRestarts; n != 0 {
			t.Errorf("the engine died %d times", n)
		}
	})
}

// answering waits until somebody behind a published port keeps a connection open.
func answering(t *testing.T, addr string) {
	t.Helper()
	err := eventually(patience, func() error {
		c, err := client{}.dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		return failIf(!errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
	})
	if err != nil {
		t.Fatalf("nobody answers on %s: %v", addr, err)
	}
}

// wrkTime is how long wrk works.
func wrkTime() time.Duration {
	if large() {
		return 10 * time.Minute
	}
	return 3 * time.Second
}

// TestPublishedNginx: nginx, published, under wrk, while other ports come and go: no
// request fails.
func TestPublishedNginx(t *testing.T) {
	nginx, wrk := tool(t, "nginx"), tool(t, "wrk")
	overSettings(t, []setting{{"run", "tap", "splice"}, {"run", "packet", "netstack"}}, func(t *testing.T, s setting) {
		if s.driver == "netstack" && wrkTime() > time.Minute {
			t.Skip("the long form is about the default")
		}
		needEndpoint(t, s.endpoint)
		a := ordinary(t)
		conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/log; worker_rlimit_nofile 4096; events { worker_connections 2048; }
http {
  access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  server { listen 0.0.0.0:80; listen [::]:80; keepalive_requests 1000; location / { return 200 "a page of some length\n"; } }
}`, a.runtime)
		if err := os.WriteFile(a.runtime+"/conf", []byte("user root;\n"+conf), 0o644); err != nil {
			t.Fatal(err)
		}
		i := a.begin(t, "web", "run", "--name", "web", "--endpoint", s.endpoint, "--port-driver", s.driver, "-p", "8080:80", "-p", "0.0.0.0:8081:80", "--", nginx, "-c", a.runtime+"/conf", "-p", a.runtime)
		answering(t, "127.0.0.1:8080")
		stop := make(chan struct{})
		changed := make(chan int)
		go func() { changed <- i.changePorts(t, stop) }()
		type result struct {
			name string
			outcome
		}
		results := make(chan result)
		duration := strconv.Itoa(int(wrkTime().Seconds())) + "s"
		for name, args := range map[string][]string{
			"kept":   {"-c", "32", "http://127.0.0.1:8080/"},
			"closed": {"-c", "8", "-H", "Connection: close", "http://" + host4 + ":8081/"},
		} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), wrkTime()+within)
				defer cancel()
				results <- result{name, finish(a.command(ctx, wrk, append([]string{"-t", "1", "-d", duration, "--latency", "--timeout", fmt.Sprint(int(patience.Seconds())) + "s"}, args...)...))}
			}()
		}
		for range 2 {
			r := <-results
			rate := regexp.MustCompile(`Requests/sec: +([0-9.]+)`).FindStringSubmatch(r.out)
			if r.code != 0 || strings.Contains(r.out, "Socket errors") || strings.Contains(r.out, "Non-2xx") || rate == nil || strings.HasPrefix(rate[1], "0.0") {
				t.Errorf("wrk, connections %s: exit code %d\n%s%s", r.name, r.code, r.out, r.err)
			}
			t.Logf("connections %s for %v: 0 errors, %s\n%s", r.name, wrkTime(), lastLine(r.out, "Requests/sec"), r.out)
		}
		close(stop)
		t.Logf("%d rules added and removed meanwhile", <-changed)
		if n := i.mustStatus(t).EngineRestarts; n != 0 {
			t.Errorf("the engine died %d times", n)
		}
	})
}

// changePorts adds rules of every kind and removes them, without rest, and returns
// how many.
func (i *inst) changePorts(t *testing.T, stop <-chan struct{}) (changes int) {
	c := i.control()
	for {
		select {
		case <-stop:
			return changes
		case <-time.After(2 * time.Millisecond):
		}
		first := 9000 + rand.IntN(50)*10
		spec := []string{
			fmt.Sprintf("127.0.0.1:%d:80", first), fmt.Sprintf("%d-%d:80-89", first, first+9), fmt.Sprintf("%d:53/udp", first),
			"unix:" + i.runtime + "/coming.sock:unix:/nowhere", ":80", fmt.Sprintf("%d:10.0.2.100:80", first),
		}[rand.IntN(6)]
		rules, err := c.add(spec)
		if err == nil && rand.IntN(2) == 0 && strings.HasPrefix(spec, "127.0.0.1:") {
			if conn, err := (client{limit: patience}).dial("tcp", fmt.Sprintf("127.0.0.1:%d", first)); err == nil {
				conn.Close()
			}
		}
		if err == nil {
			err = c.remove(rules[0].ID)
		}
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			return changes
		}
		changes++
	}
}
