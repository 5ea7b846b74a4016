package dhcp

import (
	"encoding/binary"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/postern-net/postern/proto/inet"
)

// appendSearch4 writes the first search domain as the domain name, for clients
// that know no search list, and the list itself (RFC 3397). A list longer than
// 255 bytes goes into several options, which a client puts together (RFC 3396).
func appendSearch4(w *writer4, search []string) {
	if len(search) > 0 {
		if _, ok := inet.AppendName(nil, search[0]); ok {
			w.add(optDomain, []byte(strings.TrimSuffix(search[0], "."))...)
		}
	}
	// Each piece costs two bytes more; what they take is kept free.
	room := w.limit - len(w.b)
	room -= 2 * (room/257 + 1)
	names := inet.AppendNames(nil, search, room)
	for len(names) > 0 {
		n := min(len(names), 255)
		w.add(optSearch, names[:n]...)
		names = names[n:]
	}
}

func mask(p netip.Prefix) []byte {
	return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
}

// seconds clips a time to what the wire holds. All ones mean for ever.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), math.MaxUint32))
}
