package drivertest

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"

	"github.com/postern-net/postern/portdriver"
)

// RootlessKit makes a harness of a driver with RootlessKit's interfaces: its parent
// in the driver's process, its child in the container's namespaces.
func RootlessKit(name string, parent func(World) (port.ParentDriver, error), child func() port.ChildDriver, claims ...Feature) Harness {
	return Harness{
		Name:   name,
		Claims: claims,
		Start:  func(w World) (Driver, error) { return startRootlessKit(w, parent) },
		Inside: func(arg string, quit <-chan struct{}) error {
			var opaque map[string]string
			if err := json.Unmarshal([]byte(arg), &opaque); err != nil {
				return err
			}
			return child().RunChildDriver(opaque, quit, "")
		},
	}
}

// rootlessKit is a Driver over a parent driver that runs.
type rootlessKit struct {
	parent port.ParentDriver
	quit   chan struct{}
	ended  chan error
	stop   func() error
}

// startRootlessKit does what RootlessKit's parent does.
func startRootlessKit(w World, newParent func(World) (port.ParentDriver, error)) (Driver, error) {
	parent, err := newParent(w)
	if err != nil {
		return nil, err
	}
	opaque, err := json.Marshal(parent.OpaqueForChild())
	if err != nil {
		return nil, err
	}
	stop, err := w.StartInside(string(opaque))
	if err != nil {
		return nil, err
	}
	d := &rootlessKit{parent: parent, quit: make(chan struct{}), ended: make(chan error, 1), stop: stop}
	ready := make(chan struct{})
	go func() {
		context := &port.ChildContext{IP: w.Addresses.Container4.AsSlice(), GatewayIP: w.Addresses.Gateway4.AsSlice()}
		d.ended <- parent.RunParentDriver(ready, d.quit, context)
	}()
	select {
	case <-ready:
		return d, nil
	case err := <-d.ended:
		return nil, fmt.Errorf("the parent driver ended: %w", err)
	}
}

// Publish translates the rule. RootlessKit knows no ranges and no unix sockets.
func (d *rootlessKit) Publish(spec portdriver.Spec) (int, error) {
	s := port.Spec{
		Proto:    string(spec.Proto),
		ParentIP: spec.Host.Addr.String(), ParentPort: int(spec.Host.Port),
		ChildPort: int(spec.Container.Port),
	}
	if spec.Container.Addr.IsValid() {
		s.ChildIP = spec.Container.Addr.String()
	}
	status, err := d.parent.AddPort(context.Background(), s)
	if err != nil {
		return 0, err
	}
	return status.ID, nil
}

// Unpublish ends a rule.
func (d *rootlessKit) Unpublish(rule int) error {
	return d.parent.RemovePort(context.Background(), rule)
}

// Close ends the parent, then the child.
func (d *rootlessKit) Close() error {
	close(d.quit)
	err := <-d.ended
	if serr := d.stop(); err == nil {
		err = serr
	}
	return err
}
