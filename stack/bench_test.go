package stack_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

// BenchmarkTCP moves bytes between a socket of the container and one of the
// host, 64 KiB a write, and tells the throughput of one stream.
func BenchmarkTCP(b *testing.B) {
	for _, out := range []bool{true, false} {
		for _, mtu := range []int{1500, stack.MaxMTU} {
			b.Run(fmt.Sprintf("out=%v/mtu=%d", out, mtu), func(b *testing.B) { benchmarkTCP(b, mtu, out) })
		}
	}
}

func benchmarkTCP(b *testing.B, mtu int, out bool) {
	if err := lan(); err != nil {
		b.Fatal(err)
	}
	g := guest.New(b, tap.TAP, mtu)
	dev, err := tap.New(g.Device, tap.TAP)
	if err != nil {
		b.Fatal(err)
	}
	e, err := stack.New(stack.Config{Device: dev, MTU: mtu, ContainerMAC: g.MAC, Static: true})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	defer func() {
		e.Close()
		<-ended
	}()
	g.Configure(b, netplan.Default())
	l, err := net.Listen("tcp", net.JoinHostPort(host4.String(), "0"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var from, to net.Conn
	g.Do(b, func() (err error) {
		from, err = net.Dial("tcp", l.Addr().String())
		return err
	})
	if to, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	if !out {
		from, to = to, from
	}
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ResetTimer()
	go func() {
		for range b.N {
			if _, err := from.Write(buf); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	sink := make([]byte, 1<<20)
	for left := b.N * len(buf); left > 0; {
		n, err := to.Read(sink[:min(left, len(sink))])
		if err != nil && err != io.EOF {
			b.Fatal(err)
		}
		left -= n
	}
}
