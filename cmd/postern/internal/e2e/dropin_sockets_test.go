package e2e

import (
	"context"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDropinDockerSocket: dockerd-rootless.sh as a service with a socket unit, docker.sock
// listened on by systemd, of which dockerd inside learns by "-H fd://".
func TestDropinDockerSocket(t *testing.T) {
	a := ordinary(t)
	s := &dockerStory{rootlessKit: newRootlessKit(t, a, "postern", "", false, "builtin"), user: a, owner: t}
	for _, name := range []string{"dockerd", "docker", "containerd", "runc", "iptables"} {
		tool(t, name)
	}
	if _, err := os.Stat(dockerdRootless); err != nil {
		missing(t, dockerdRootless+" is not installed")
	}
	path := a.runtime + "/docker.sock"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Chown(path, lab.uid, lab.gid); err != nil {
		t.Fatal(err)
	}
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	dir, state := a.runtime+"/docker", a.runtime+"/dockerd-rootless"
	cmd := a.command(context.Background(), "/bin/sh", "-c", `export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=docker.socket; exec "$@"`, "sh",
		dockerdRootless, "--host=fd://", "--data-root="+dir+"/data", "--exec-root="+dir+"/exec", "--pidfile="+dir+"/pid",
		"--storage-driver=vfs", "--log-level=warn")
	cmd.Env = append(cmd.Env, "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--state-dir="+state)
	cmd.ExtraFiles = []*os.File{socket}
	a.mustCommand(t, "mkdir", "-p", dir)
	s.running = s.bootCommand(t, t, a, state, cmd, dir+"/pid")
	if err := eventually(patience, func() error {
		o := s.docker(t, nil, "version", "--format={{.Server.Os}}")
		return failIf(o.code != 0 || o.out != "linux\n", "%s%s", o.out, o.err)
	}); err != nil {
		t.Fatalf("dockerd does not answer on the socket that it was passed: %v\n%s", err, s.running.output)
	}
	s.running.stop(t, unix.SIGTERM)
}
