package bundle

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxExposed bounds the ports of an image's list; images have a handful.
const maxExposed = 1024

// Exposed is a port that an image says it listens on.
type Exposed struct {
	Port  uint16
	Proto string // "tcp" or "udp"
}

// ParseExposed reads the list of ExposedAnnotation, "53/udp,80/tcp": a port
// without a protocol is TCP's, A-B is a range. Protocols that nobody can publish
// (sctp) are left out and named. The text is the image's: it is checked and bounded.
func ParseExposed(text string) (ports []Exposed, others []string, err error) {
	for _, item := range strings.Split(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		number, proto, found := strings.Cut(item, "/")
		if !found {
			proto = "tcp"
		}
		first, last, err := portRange(number)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %.64q: want PORT/PROTOCOL", ExposedAnnotation, item)
		}
		proto = strings.ToLower(proto)
		if proto != "tcp" && proto != "udp" {
			others = append(others, fmt.Sprintf("%.64q", item))
			continue
		}
		for p := first; p <= last; p++ {
			if slices.Contains(ports, Exposed{uint16(p), proto}) {
				continue
			}
			if len(ports) == maxExposed {
				return nil, nil, fmt.Errorf("%s: more than %d ports", ExposedAnnotation, maxExposed)
			}
			ports = append(ports, Exposed{uint16(p), proto})
		}
	}
	return ports, others, nil
}

func portRange(text string) (first, last uint64, err error) {
	low, high, ranged := strings.Cut(text, "-")
	if first, err = strconv.ParseUint(low, 10, 16); err != nil {
		return 0, 0, err
	}
	last = first
	if ranged {
		last, err = strconv.ParseUint(high, 10, 16)
	}
	if err == nil && (first == 0 || last < first) {
		err = strconv.ErrRange
	}
	return first, last, err
}
