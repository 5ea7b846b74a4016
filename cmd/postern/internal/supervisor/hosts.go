package supervisor

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
)

// RootlessKit is what an instance does differently for commands and clients that
// were written for RootlessKit. Its zero value is no difference.
type RootlessKit struct {
	// Hosts begins the command's hosts file with the host's.
	Hosts bool
	// DriverName is what clients are told of the port driver, "" for the one in use.
	// Docker and nerdctl publish nothing where they read "implicit".
	DriverName string
	// Everywhere has ports that a client publishes without an address on the host's
	// IPv4 addresses, or IPv6 for a protocol of that family, not on the loopback only.
	Everywhere bool
	// AutoEverywhere has PublishAuto publish on all addresses of the host what does not
	// listen on a loopback address only.
	AutoEverywhere bool
	// Child is where ports lead to that a client publishes without an address of the
	// container; the zero Addr: to the container's own.
	Child netip.Addr
}

// maxHosts bounds what is taken of the host's hosts file, bytes. Lists of blocked
// names have some MiB.
const maxHosts = 16 << 20

// keptHosts is the hosts file of programs that were written for RootlessKit: the
// host's, and the host's name as a name of the loopback, so that it does not lead to
// an address of the host that is out of reach. Without the host's file, it is the
// rest.
func keptHosts(log *slog.Logger, hostname string) []byte {
	text, err := readHosts("/etc/hosts")
	if err != nil {
		log.Warn("the command's /etc/hosts begins empty", "cause", err)
		text = []byte("127.0.0.1 localhost\n::1 localhost")
	}
	if hostname == "" {
		return append(text, '\n')
	}
	return fmt.Appendf(text, "\n127.0.0.1 %s\n::1 %s\n", hostname, hostname)
}

func readHosts(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHosts+1))
	if err == nil && len(text) > maxHosts {
		err = fmt.Errorf("read %s: longer than %d bytes", path, maxHosts)
	}
	return text, err
}
