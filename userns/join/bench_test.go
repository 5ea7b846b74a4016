package join

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/spawn"
)

// BenchmarkVisit is the time to fetch the sockets of the packet endpoint.
func BenchmarkVisit(b *testing.B) {
	maps, err := spawn.PlanMaps(context.Background(), spawn.Single)
	if err != nil {
		b.Fatal(err)
	}
	in, keep, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer keep.Close()
	p, err := spawn.Start(context.Background(), spawn.Config{
		Maps: maps, Argv: []string{"inhabitant"}, Files: []*os.File{in}, Pdeathsig: unix.SIGKILL,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	target, err := OpenPID(p.PID)
	if err != nil {
		b.Fatal(err)
	}
	defer target.Close()
	for b.Loop() {
		s, err := target.Open(Request{})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
