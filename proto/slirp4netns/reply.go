package slirp4netns

import (
	"errors"
	"net/netip"
	"strconv"
)

// Entry is one published port of a list.
type Entry struct {
	// ID is what RemoveHostFwd wants.
	ID int
	// Proto is TCP or UDP.
	Proto               string
	HostAddr, GuestAddr netip.Addr
	HostPort, GuestPort uint16
}

// AppendAdded appends the answer to an AddHostFwd that succeeded.
func AppendAdded(b []byte, id int) []byte {
	b = append(b, `{"return":{"id":`...)
	b = strconv.AppendInt(b, int64(id), 10)
	return append(b, "}}"...)
}

// AppendRemoved appends the answer to a RemoveHostFwd that succeeded.
func AppendRemoved(b []byte) []byte { return append(b, `{"return":{}}`...) }

// AppendList appends the answer to a ListHostFwd: as the manual has it, and as
// slirp4netns has it.
func AppendList(b []byte, entries []Entry) []byte {
	b = append(b, `{"return":{`...)
	start := len(b)
	b = appendEntries(b, entries)
	end := len(b)
	b = append(b, "},"...)
	b = append(b, b[start:end]...)
	return append(b, '}')
}

func appendEntries(b []byte, entries []Entry) []byte {
	b = append(b, `"entries":[`...)
	for i, e := range entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"id":`...)
		b = strconv.AppendInt(b, int64(e.ID), 10)
		b = append(b, `,"proto":"`...)
		b = append(b, e.Proto...)
		b = append(b, `","host_addr":"`...)
		b = e.HostAddr.AppendTo(b)
		b = append(b, `","host_port":`...)
		b = strconv.AppendUint(b, uint64(e.HostPort), 10)
		b = append(b, `,"guest_addr":"`...)
		b = e.GuestAddr.AppendTo(b)
		b = append(b, `","guest_port":`...)
		b = strconv.AppendUint(b, uint64(e.GuestPort), 10)
		b = append(b, '}')
	}
	return append(b, ']')
}

// AppendError appends the answer to a request that is refused: the text of the Refusal
// in err's chain, or of ErrExecute if there is none.
func AppendError(b []byte, err error) []byte {
	refusal := ErrExecute
	errors.As(err, &refusal)
	b = append(b, `{"error":{"desc":"`...)
	b = append(b, refusal.Error()...) // none has a character to escape
	return append(b, `"}}`...)
}
