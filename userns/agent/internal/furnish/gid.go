package furnish

import (
	"fmt"
	"os"

	"github.com/postern-net/postern/userns"
)

// lastGID is the end of the run of mapped group ids that starts at 0: the range
// that ping_group_range may name, as the kernel refuses unmapped bounds.
func lastGID() (uint32, error) {
	text, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return 0, fmt.Errorf("read own group map: %w", err)
	}
	m, err := userns.ParseMap(string(text))
	if err != nil {
		return 0, fmt.Errorf("parse own group map: %w", err)
	}
	// The range's file takes signed numbers up to 2^31-1 (icmp(7)).
	return min(m.Max(), 1<<31-1), nil
}
