package hostsock

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
)

// queued returns control messages as the kernel queues them: one that is of no
// interest, then the error with its offender.
func queued(v6 bool, errno unix.Errno, origin, typ, code byte, info uint32, offender netip.Addr) []byte {
	var c controls
	c.addInt32(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 7)
	level, typeName := int32(unix.IPPROTO_IP), int32(unix.IP_RECVERR)
	if v6 {
		level, typeName = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	b := (*[extendedErrLen + unix.SizeofSockaddrInet6]byte)(c.add(level, typeName, extendedErrLen+unix.SizeofSockaddrInet6))
	binary.NativeEndian.PutUint32(b[:], uint32(errno))
	b[originAt], b[typeAt], b[codeAt] = origin, typ, code
	binary.NativeEndian.PutUint32(b[infoAt:], info)
	if offender.IsValid() {
		putName((*name)(unsafe.Pointer(&b[extendedErrLen])), netip.AddrPortFrom(offender, 0))
	}
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&c.buf)), c.n)...)
}

func TestParseReport(t *testing.T) {
	r4, r6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
	const icmp4, icmp6, local = unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6, unix.SO_EE_ORIGIN_LOCAL
	for _, c := range []struct {
		what    string
		control []byte
		want    Report
	}{
		{"v4 fragmentation needed", queued(false, unix.EMSGSIZE, icmp4, 3, 4, 1400, r4), Report{Kind: icmp.FragmentationNeeded, MTU: 1400, Offender: r4}},
		{"v6 packet too big", queued(true, unix.EMSGSIZE, icmp6, 2, 0, 1280, r6), Report{Kind: icmp.FragmentationNeeded, MTU: 1280, Offender: r6}},
		{"v4 time exceeded", queued(false, unix.EHOSTUNREACH, icmp4, 11, 0, 0, r4), Report{Kind: icmp.TimeExceeded, Offender: r4}},
		{"v6 time exceeded", queued(true, unix.EHOSTUNREACH, icmp6, 3, 0, 0, r6), Report{Kind: icmp.TimeExceeded, Offender: r6}},
		{"v4 reassembly time exceeded", queued(false, unix.EHOSTUNREACH, icmp4, 11, 1, 0, r4), Report{Offender: r4}},
		{"v4 port", queued(false, unix.ECONNREFUSED, icmp4, 3, 3, 0, r4), Report{Kind: icmp.PortUnreachable, Offender: r4}},
		{"v6 prohibited", queued(true, unix.EACCES, icmp6, 1, 1, 0, r6), Report{Kind: icmp.AdminProhibited, Offender: r6}},
		{"info of other kinds is no MTU", queued(false, unix.EHOSTUNREACH, icmp4, 3, 1, 99, r4), Report{Kind: icmp.HostUnreachable, Offender: r4}},
		{"local size", queued(false, unix.EMSGSIZE, local, 0, 0, 1500, netip.Addr{}), Report{Kind: icmp.FragmentationNeeded, MTU: 1500}},
		{"timestamps are none", queued(false, unix.ENOMSG, unix.SO_EE_ORIGIN_TIMESTAMPING, 3, 3, 0, netip.Addr{}), Report{}},
	} {
		got := parseReport(c.control)
		if got.Kind != c.want.Kind || got.MTU != c.want.MTU || got.Offender != c.want.Offender {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
		for n := range c.control {
			parseReport(c.control[:n:n]) // must not panic
		}
	}
}
