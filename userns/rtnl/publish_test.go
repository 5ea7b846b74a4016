package rtnl

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRuleMessages(t *testing.T) {
	littleEndian(t)
	for _, tc := range []struct {
		m    *message
		want string
	}{
		{published(unix.AF_INET).marked(PublishedMark), "44000000 20000506 01000000 00000000 02000000 00000001 00000000 " +
			"08000f00 50500000 08000600 32000000 05001500 02000000 08000a00 50100000 08001000 ff100000"},
		{published(unix.AF_INET).from(netip.MustParsePrefix("127.0.0.0/8"), unix.IPPROTO_UDP), "44000000 20000506 01000000 00000000 02000800 00000001 00000000 " +
			"08000f00 50500000 08000600 32000000 05001500 02000000 08000200 7f000000 05001600 11000000"},
		{localRoute(unix.AF_INET6, 1, PublishedTable), "2c000000 18000505 01000000 00000000 0a000000 0003fe02 00000000 08000f00 50500000 08000400 01000000"},
	} {
		if got := hexOf(tc.m); got != tc.want {
			t.Errorf("\n got %s\nwant %s", got, tc.want)
		}
	}
}

// The mark and its neighbours lie within the mask, and the mask keeps clear of what
// others set and clear.
func TestMarks(t *testing.T) {
	for mark := uint32(PublishedMark); mark <= LastMark; mark++ {
		if mark&PublishedMask != mark || !Ours(mark) || !Ours(mark|0xffff_ef00) {
			t.Errorf("mark %#x is not ours", mark)
		}
	}
	for _, others := range []uint32{0x0f00, 0x2000, 0x4000, 0x8000, 0xffff_0000} {
		if PublishedMask&others != 0 {
			t.Errorf("the mask has bits of %#x", others)
		}
	}
	for _, other := range []uint32{0, 1, 100, 255, 256, 257, 0x539, 0x53a, 51820, 0xe1f1, 0x6d6f6c65, 0x100cf, 0x1bd00, 0x40000, 0x80000, 0x2000} {
		if Ours(other) {
			t.Errorf("mark %#x is somebody else's", other)
		}
	}
}
