package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// lifeCases are about beginnings and ends.
func (p *podman) lifeCases(t *testing.T) {
	for _, network := range []string{slirpNet, slirpPorts} {
		p.try(t, "rm -f leaves nothing, "+network, podmanRun(network, "-d -p 18080:80 IMAGE; podman rm -f"), func(t *testing.T) string {
			before := p.look(t)
			p.serve(t, "traces", network, "--publish", podmanPort+":80")
			client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
			p.remove(t, "traces")
			took := p.nothingNew(t, before, "podman rm -f")
			if sockets, _ := filepath.Glob(p.runtime + "/t/*.net"); len(sockets) > 0 { // look forgives the judge
				return "✗ its API socket stays"
			}
			return fmt.Sprintf("gone after %v", took)
		})
		p.try(t, "stop, start, restart, "+network, podmanRun(network, "-d -p 18080:80 IMAGE; podman stop; podman start; podman restart"), func(t *testing.T) string {
			return p.restarts(t, network)
		})
	}
	p.try(t, "container ends by itself", podmanRun(slirpNet, "--rm -p 18080:80 IMAGE true"), func(t *testing.T) string {
		before := p.look(t)
		p.must(t, p.with(slirpNet, "--rm", "--publish", podmanPort+":80", podmanImage, "true")...)
		return fmt.Sprintf("gone after %v", p.nothingNew(t, before, "the end of the container"))
	})
	p.try(t, "exec", "podman exec CONTAINER …", func(t *testing.T) string {
		p.serve(t, "exec", slirpNet)
		p.must(t, "exec", "exec", "/probe", "@good", remote4, "3")
		client := []string{"exec", "exec", "sh", "-c", "for i in $(seq 100); do /probe @ask tcp4 127.0.0.1:80 && exit; sleep 0.1; done"}
		wants(t, p.must(t, client...), "seen 127.0.0.1:")
		return ""
	})
	p.try(t, "pod of two containers", "podman pod create --network slirp4netns -p 18080:80; podman run --pod …", p.pod)
	p.try(t, "five at once", podmanRun(slirpPorts, "-d -p 1808N:80 IMAGE, five times"), p.five)
	p.deathCases(t)
}

// restarts: each start has a new network on the same port, and the last leaves nothing.
func (p *podman) restarts(t *testing.T, network string) string {
	before := p.look(t)
	p.serve(t, "again", network, "--publish", podmanPort+":80")
	ask := func() {
		t.Helper()
		client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
		p.must(t, "exec", "again", "/probe", "@good", remote4, "1")
	}
	ask()
	p.must(t, "stop", "--time", "0", "again")
	if err := eventually(goneLimit, func() error { return failIf(len(p.mains()) > 0, "%v", p.mains()) }); err != nil {
		t.Errorf("after podman stop: %v", err)
	}
	if _, err := (client{}).ask("tcp4", "127.0.0.1:"+podmanPort); err == nil {
		t.Error("the port of a stopped container answers")
	}
	p.must(t, "start", "again")
	ask()
	p.must(t, "restart", "--time", "0", "again")
	ask()
	p.main(t)
	p.remove(t, "again")
	p.nothingNew(t, before, "podman rm -f")
	return ""
}

// pod: containers of a pod share one network and one slirp4netns.
func (p *podman) pod(t *testing.T) string {
	remove := func() { p.must(t, "pod", "rm", "--force", "--time", "0", "--ignore", "pod") }
	create := []string{"pod", "create", "--name", "pod", "--network", slirpNet, "--publish", podmanPort + ":80"}
	p.must(t, create...) // makes an image that stays
	remove()
	before := p.look(t)
	p.must(t, create...)
	defer remove()
	in := []string{"run", "--pod", "pod", "--volume", probe() + ":/probe:ro"}
	p.must(t, append(in, "--detach", podmanImage, "sh", "-c", "tail -f /dev/null | exec /probe @witness tcp,:80")...)
	client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
	out := p.must(t, append(in, "--rm", podmanImage, "sh", "-c", "/probe @ask tcp4 127.0.0.1:80; /probe @fetch "+url("web.e2e.test"))...)
	wants(t, out, "seen 127.0.0.1:", greeting)
	p.main(t)
	remove()
	p.nothingNew(t, before, "podman pod rm -f")
	return ""
}

// five: containers that start at the same time each have their own.
func (p *podman) five(t *testing.T) string {
	before := p.look(t)
	start := time.Now()
	name := func(n int) string { return fmt.Sprint("many", n) }
	errs := make([]error, 5)
	var all sync.WaitGroup
	for n := range errs {
		all.Go(func() {
			args := p.with(slirpPorts, "--detach", "--name", name(n), "--publish", fmt.Sprintf("1808%d:80", n), podmanImage,
				"sh", "-c", "tail -f /dev/null | exec /probe @witness tcp,:80")
			o := p.call(t, args...)
			errs[n] = failIf(o.code != 0, "%s: %s", name(n), o.err)
		})
	}
	all.Wait()
	t.Cleanup(func() {
		for n := range errs {
			p.remove(t, name(n))
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for n := range errs {
		client{}.await(t, "tcp4", fmt.Sprintf("127.0.0.1:1808%d", n))
		p.must(t, "exec", name(n), "/probe", "@good", remote4, "1")
	}
	took := time.Since(start).Round(10 * time.Millisecond)
	p.must(t, "rm", "--force", "--time", "0", name(0), name(1), name(2), name(3), name(4))
	p.nothingNew(t, before, "podman rm -f of five")
	return fmt.Sprintf("serving after %v", took)
}

// deathCases are about the end of processes that should not end.
func (p *podman) deathCases(t *testing.T) {
	const command = "kill -9 PROCESS"
	if p.ours {
		p.try(t, "its engine is killed", command, p.engineDies)
	} else {
		p.table.notApplicable(p.caller, "its engine is killed", "it is one process")
	}
	p.try(t, "its main process is killed", command, func(t *testing.T) string {
		before := p.look(t)
		p.serve(t, "dead", slirpPorts, "--publish", podmanPort+":80")
		client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
		gone := family(p.main(t).pid)
		kill(t, p.main(t).pid)
		if err := eventually(goneLimit, func() error { return failIf(len(alive(gone)) > 0, "%v", alive(gone)) }); err != nil {
			t.Errorf("after its end: %v", err)
		}
		if state := p.must(t, "inspect", "--format", "{{.State.Status}}", "dead"); state != "running" {
			t.Errorf("the container is %s", state)
		}
		if o := p.call(t, "exec", "dead", "/probe", "@dial", "tcp4", remote4+":"+portEcho); strings.Contains(o.out, "connected") {
			t.Errorf("it still has a network: %s", o.out)
		}
		p.must(t, "restart", "--time", "0", "dead")
		client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
		p.must(t, "exec", "dead", "/probe", "@good", remote4, "1")
		p.remove(t, "dead")
		if p.ours {
			// Who is killed outright can clear nothing away; whoever looks next does.
			p.mustCommand(t, lab.dir+"/postern", "ps")
		}
		p.nothingNew(t, before, "podman rm -f")
		return "no network until podman restart"
	})
}

// engineDies: another engine serves the container, its ports too.
func (p *podman) engineDies(t *testing.T) string {
	before := p.look(t)
	p.serve(t, "mended", slirpPorts, "--publish", podmanPort+":80")
	client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
	main := p.main(t)
	engine := func() (pid int) {
		for _, proc := range family(main.pid) {
			if strings.HasPrefix(proc.command, "postern-engine") {
				pid = proc.pid
			}
		}
		return pid
	}
	first := engine()
	start := time.Now()
	kill(t, first)
	client{}.await(t, "tcp4", "127.0.0.1:"+podmanPort)
	p.must(t, "exec", "mended", "/probe", "@good", remote4, "3")
	took := time.Since(start).Round(time.Millisecond)
	if second := engine(); second == first || second == 0 {
		t.Errorf("the engine was %d and is %d", first, second)
	}
	p.remove(t, "mended")
	p.nothingNew(t, before, "podman rm -f")
	return fmt.Sprintf("replaced, serving after %v", took)
}
