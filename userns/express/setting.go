package express

import (
	"os"
	"strings"
)

const (
	// congestion is the congestion control of the path's connections.
	congestion = "reno"
	// congestionSetting is the container's side of it, below /proc/sys/net. Kernels
	// before 4.15 have it once for all and not in a network namespace.
	congestionSetting = "ipv4/tcp_congestion_control"

	// lowPorts is from where on ports may be bound without a capability. The sockets of
	// UDP flows are bound by the engine, which has none, to the remote's port, and
	// that of QUIC is 443.
	lowPorts        = "0"
	lowPortsSetting = "ipv4/ip_unprivileged_port_start"
)

// setting is a sysctl of the container's network namespace that only makes the path
// faster: where it cannot be written, nothing is lost but some speed.
type setting struct {
	file *os.File // nil: there is none to write
	old  string   // what it was, empty if it was right
}

// change writes the value and remembers the one before, unless it did so earlier.
func (s *setting) change(value string) {
	now, ok := s.read()
	if !ok || now == value {
		return
	}
	if _, err := s.file.WriteAt([]byte(value), 0); err == nil && s.old == "" {
		s.old = now
	}
}

// restore puts the old value back, unless somebody has changed ours.
func (s *setting) restore(value string) error {
	now, ok := s.read()
	if !ok || now != value || s.old == "" {
		return nil
	}
	_, err := s.file.WriteAt([]byte(s.old), 0)
	return err
}

func (s *setting) read() (string, bool) {
	if s.file == nil {
		return "", false
	}
	b := make([]byte, 64) // TCP_CA_NAME_MAX is 16
	n, _ := s.file.ReadAt(b, 0)
	return strings.TrimSpace(string(b[:n])), n > 0
}
