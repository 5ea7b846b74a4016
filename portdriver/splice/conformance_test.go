package splice

import (
	"os"
	"testing"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/drivertest"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/tap"
)

// conformance claims everything but UDP, which is not this driver's.
var conformance = drivertest.Harness{
	Name: "splice", Start: startConformance, Device: tap.Packet, Kept: drivertest.Stocked,
	Claims: []drivertest.Feature{
		drivertest.Source, drivertest.Gateway, drivertest.IPv6, drivertest.Loopback, drivertest.OwnAddress, drivertest.Refusal,
		drivertest.Resets, drivertest.Outlive, drivertest.Range, drivertest.Recover, drivertest.Proxy, drivertest.Unix,
	},
}

func startConformance(w drivertest.World) (drivertest.Driver, error) {
	sockets, end, err := w.Stock()
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
	d, err := New(Config{Addresses: w.Addresses, Loops: loops, Stock: sockets, Root: root})
	if err != nil {
		return nil, err
	}
	return drivertest.Serve(w, func(portdriver.Listener) portdriver.Driver { return d }, []portdriver.Driver{d}, func() {
		loops.Close()
		end()
		root.Close()
	})
}

func TestConformance(t *testing.T) {
	forgetful(t)
	drivertest.Run(t, conformance)
}
