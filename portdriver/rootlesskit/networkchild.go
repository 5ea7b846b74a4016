package rootlesskit

import (
	"errors"

	kit "github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network"
)

// NewChildNetwork returns the network driver for child.Opt.
func NewChildNetwork() network.ChildDriver { return childNetwork{} }

// childNetwork leaves everything to the parent's driver.
type childNetwork struct{}

// ChildDriverInfo implements network.ChildDriver.
func (childNetwork) ChildDriverInfo() (*network.ChildDriverInfo, error) {
	return &network.ChildDriverInfo{ConfiguresInterface: true}, nil
}

// ConfigureNetworkChild implements network.ChildDriver.
func (childNetwork) ConfigureNetworkChild(m *kit.ParentInitNetworkDriverCompleted, _ string) (string, error) {
	if m.Dev == "" {
		return "", errors.New("network driver " + NetworkDriverName + ": the parent has named no interface")
	}
	return m.Dev, nil
}
