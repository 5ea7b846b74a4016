package netstack

import (
	"context"
	"os"
	"testing"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/drivertest"
	"github.com/postern-net/postern/portdriver/kernudp"
	"github.com/postern-net/postern/portdriver/splice"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/tap"
)

// alone is this driver by itself, over both kinds of device. The container's loopback
// is out of its reach.
var alone = func() (list []drivertest.Harness) {
	for _, kind := range []tap.Kind{tap.TAP, tap.Packet} {
		list = append(list, drivertest.Harness{
			Name: "netstack over " + kind.String(), Start: startAlone, Device: kind, Kept: lateReplies,
			Claims: []drivertest.Feature{
				drivertest.Source, drivertest.SourceUDP, drivertest.Gateway, drivertest.UDP, drivertest.IPv6,
				drivertest.OwnAddress, drivertest.Refusal, drivertest.Resets, drivertest.Outlive, drivertest.Range,
				drivertest.Recover, drivertest.ReplyAddress, drivertest.Empty, drivertest.Proxy,
			},
		})
	}
	return list
}()

// lateReplies is how many sockets the engine may have for replies that a server sent
// when its rule was gone: to the engine they are datagrams of the container's own.
const lateReplies = 16

// together is what an engine has: the splice driver for TCP, this one for UDP, which
// has another one for the container's loopback.
var together = drivertest.Harness{
	Name: "splice, netstack and kernudp", Start: startTogether, Device: tap.Packet, Claims: drivertest.All, Kept: drivertest.Stocked + lateReplies,
}

func TestConformance(t *testing.T) {
	for _, h := range alone {
		t.Run(h.Name, func(t *testing.T) { drivertest.Run(t, h) })
	}
	t.Run(together.Name, func(t *testing.T) { drivertest.Run(t, together) })
}

// startEngine runs an engine on the world's device; end stops it.
func startEngine(w drivertest.World) (e *stack.Engine, end func(), err error) {
	device, err := tap.New(w.Device, w.Kind)
	if err != nil {
		return nil, nil, err
	}
	e, err = stack.New(stack.Config{Device: device, MTU: w.MTU, Plan: w.Plan, Static: true, ContainerMAC: w.MAC})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Run(ctx)
	}()
	return e, func() { cancel(); <-ended }, nil
}

func startAlone(w drivertest.World) (drivertest.Driver, error) {
	e, end, err := startEngine(w)
	if err != nil {
		return nil, err
	}
	d, err := New(Config{Addresses: w.Addresses, Engine: e})
	if err != nil {
		return nil, err
	}
	return drivertest.Serve(w, func(portdriver.Listener) portdriver.Driver { return d }, []portdriver.Driver{d}, end)
}

func startTogether(w drivertest.World) (drivertest.Driver, error) {
	e, endEngine, err := startEngine(w)
	if err != nil {
		return nil, err
	}
	sockets, endStock, err := w.Stock()
	if err != nil {
		return nil, err
	}
	loops, err := relay.NewLoops(2)
	if err != nil {
		return nil, err
	}
	root, err := os.Open("/")
	if err != nil {
		return nil, err
	}
	tcp, err := splice.New(splice.Config{Addresses: w.Addresses, Loops: loops, Stock: sockets, Root: root})
	if err != nil {
		return nil, err
	}
	loopback, err := kernudp.New(kernudp.Config{Stock: sockets, Routes: w.Addresses.Routes})
	if err != nil {
		return nil, err
	}
	udp, err := New(Config{Addresses: w.Addresses, Engine: e, Loopback: loopback})
	if err != nil {
		return nil, err
	}
	choose := func(l portdriver.Listener) portdriver.Driver {
		if l.Network == portdriver.NetUDP {
			return udp
		}
		return tcp
	}
	return drivertest.Serve(w, choose, []portdriver.Driver{tcp, udp}, func() {
		endEngine()
		loops.Close()
		endStock()
		root.Close()
	})
}
