package rtnl

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// hexOf is a message with the sequence number 1, in words of four bytes.
func hexOf(m *message) string {
	var words []string
	for b := m.finish(1); len(b) > 0; b = b[4:] {
		words = append(words, hex.EncodeToString(b[:4]))
	}
	return strings.Join(words, " ")
}

func littleEndian(t *testing.T) {
	t.Helper()
	if host.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the expected bytes are little-endian")
	}
}

func TestAddressMessage(t *testing.T) {
	littleEndian(t)
	for _, tc := range []struct{ prefix, want string }{
		{"10.0.2.100/24", "30000000 14000505 01000000 00000000 02188000 07000000 " +
			"08000200 0a000264 08000100 0a000264 08000400 0a0002ff"},
		{"10.0.2.100/32", "28000000 14000505 01000000 00000000 02208000 07000000 08000200 0a000264 08000100 0a000264"},
		{"fd00::100/64", "40000000 14000505 01000000 00000000 0a408200 07000000 " +
			"14000200 fd000000 00000000 00000000 00000100 14000100 fd000000 00000000 00000000 00000100"},
	} {
		if got := hexOf(addressMessage(7, netip.MustParsePrefix(tc.prefix))); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.prefix, got, tc.want)
		}
	}
}

func TestRouteMessage(t *testing.T) {
	littleEndian(t)
	for _, tc := range []struct {
		gateway string
		direct  bool
		want    string
	}{
		{"10.0.2.2", false, "2c000000 18000505 01000000 00000000 02000000 fe030001 00000000 08000500 0a000202 08000400 07000000"},
		{"10.0.2.2", true, "2c000000 18000505 01000000 00000000 02000000 fe030001 04000000 08000500 0a000202 08000400 07000000"},
		{"fd00::2", false, "38000000 18000505 01000000 00000000 0a000000 fe030001 00000000 " +
			"14000500 fd000000 00000000 00000000 00000002 08000400 07000000"},
	} {
		if got := hexOf(routeMessage(7, netip.MustParseAddr(tc.gateway), tc.direct)); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.gateway, got, tc.want)
		}
	}
}

func TestVethMessageNests(t *testing.T) {
	m := vethMessage("tap0", "far0", 5)
	b := m.finish(1)
	var outer []uint16
	for kind, value := range attributes(b[unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg:]) {
		outer = append(outer, kind)
		if kind != unix.IFLA_LINKINFO {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == unix.IFLA_INFO_KIND && cString(value) != "veth" {
				t.Errorf("kind %q", value)
			}
			if kind != unix.IFLA_INFO_DATA {
				continue
			}
			for kind, value := range attributes(value) {
				l, err := parseLink(value)
				if kind != vethInfoPeer || err != nil || l.name != "far0" {
					t.Errorf("peer: attribute %d, %+v, %v", kind, l, err)
				}
			}
		}
	}
	if diff := cmp.Diff([]uint16{unix.IFLA_IFNAME, unix.IFLA_LINKINFO}, outer); diff != "" {
		t.Error(diff)
	}
}

func TestBroadcastAndOnLink(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.2.100/24": "10.0.2.255", "10.0.0.1/8": "10.255.255.255", "10.0.0.5/30": "10.0.0.7",
		"10.0.0.5/31": "", "10.0.0.5/32": "", "fd00::1/64": "",
	} {
		got, ok := broadcast(netip.MustParsePrefix(prefix))
		if ok != (want != "") || (ok && got != netip.MustParseAddr(want)) {
			t.Errorf("broadcast of %s is %v, %t", prefix, got, ok)
		}
	}
	addrs := []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/128")}
	for gw, want := range map[string]bool{"10.0.2.2": false, "10.0.3.2": true, "fd00::2": true} {
		if got := onLink(netip.MustParseAddr(gw), addrs); got != want {
			t.Errorf("onLink(%s) = %t", gw, got)
		}
	}
}

// nlmsg builds a message from the kernel.
func nlmsg(kind, flags uint16, seq uint32, body []byte) []byte {
	b := host.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = host.AppendUint16(b, kind)
	b = host.AppendUint16(b, flags)
	b = host.AppendUint32(b, seq)
	b = host.AppendUint32(b, 0)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// ackBody is an NLMSG_ERROR body; quoted is the request after its header.
func ackBody(errno unix.Errno, quoted []byte, capped bool, text string) []byte {
	b := host.AppendUint32(nil, uint32(-int32(errno)))
	b = host.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(quoted)))
	b = append(b, make([]byte, 12)...)
	if !capped {
		b = append(b, quoted...)
	}
	if text != "" {
		m := &message{b: b}
		m.attrString(unix.NLMSGERR_ATTR_MSG, text)
		b = m.b
	}
	return b
}

func TestAnswer(t *testing.T) {
	quoted := make([]byte, 16)
	tlvs := uint16(unix.NLM_F_ACK_TLVS)
	for _, tc := range []struct {
		name string
		b    []byte
		done bool
		err  string
	}{
		{"success", nlmsg(unix.NLMSG_ERROR, 0, 1, ackBody(0, quoted, false, "")), true, ""},
		{"errno", nlmsg(unix.NLMSG_ERROR, 0, 1, ackBody(unix.EEXIST, quoted, false, "")), true, "op: file exists"},
		{"errno with words", nlmsg(unix.NLMSG_ERROR, tlvs, 1, ackBody(unix.EINVAL, quoted, false, "mtu too big")), true, "op: invalid argument (mtu too big)"},
		{"capped", nlmsg(unix.NLMSG_ERROR, tlvs|unix.NLM_F_CAPPED, 1, ackBody(unix.EINVAL, quoted, true, "mtu too big")), true, "op: invalid argument (mtu too big)"},
		{"an older request's", nlmsg(unix.NLMSG_ERROR, 0, 9, ackBody(unix.EEXIST, quoted, false, "")), false, ""},
		{"end of a dump", nlmsg(unix.NLMSG_DONE, 0, 1, make([]byte, 4)), true, ""},
		{"end of a dump without a word", nlmsg(unix.NLMSG_DONE, 0, 1, nil), true, ""},
		{"failed dump", nlmsg(unix.NLMSG_DONE, 0, 1, host.AppendUint32(nil, 0xfffffffe)), true, "op: no such file or directory"},
		{"nothing", nil, false, ""},
		{"short error", nlmsg(unix.NLMSG_ERROR, 0, 1, make([]byte, 8)), true, "op: malformed netlink answer"},
		{"positive errno", nlmsg(unix.NLMSG_ERROR, 0, 1, append(host.AppendUint32(nil, 5), make([]byte, 16)...)), true, "op: malformed netlink answer"},
		{"truncated", []byte{1, 2, 3}, true, "op: malformed netlink answer"},
		{"length past the end", append([]byte{0xff, 0xff, 0, 0}, make([]byte, 12)...), true, "op: malformed netlink answer"},
		{"length below the header", make([]byte, 16), true, "op: malformed netlink answer"},
		{"quote past the end", nlmsg(unix.NLMSG_ERROR, tlvs, 1, append(host.AppendUint32(host.AppendUint32(nil, uint32(0xffffffea)), 1<<30), make([]byte, 12)...)), true, "op: invalid argument"},
	} {
		done, err := answer(tc.b, 1, "op", nil)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if done != tc.done || (tc.err == "") != (err == nil) || !strings.HasPrefix(text, tc.err) {
			t.Errorf("%s: %t, %q; want %t, %q", tc.name, done, text, tc.done, tc.err)
		}
	}
	_, err := answer(nlmsg(unix.NLMSG_ERROR, 0, 1, ackBody(unix.EEXIST, quoted, false, "")), 1, "op", nil)
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("errors.Is does not see the errno of %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(nlmsg(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 1, ackBody(unix.EINVAL, make([]byte, 16), false, "text")))
	f.Add(nlmsg(unix.RTM_NEWLINK, 0, 1, linkHeader(1, 2, 3)))
	f.Add(append(nlmsg(unix.RTM_NEWLINK, 0, 1, vethMessage("a", "b", 3).b[16:]), nlmsg(unix.NLMSG_DONE, 0, 1, nil)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		answer(b, 1, "op", func(r reply) {
			if l, err := parseLink(r.body); err == nil && len(l.mac) > len(b) {
				t.Fatal("more MAC than message")
			}
		})
	})
}

// In no namespace of our own is anything changed: an ordinary socket of ours has
// no rights, or the interface is not there.
func TestErrorsNameOperationAndObject(t *testing.T) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	route := os.NewFile(uintptr(fd), "route")
	defer route.Close()
	if l, err := Find(route, "lo"); err != nil || l.Index < 1 || len(l.MAC) != 6 {
		t.Errorf("lo: %+v, %v", l, err)
	}
	_, err = Find(route, "nonexistent0")
	if !errors.Is(err, unix.ENODEV) || !strings.HasPrefix(err.Error(), "look at nonexistent0: ") {
		t.Errorf("no such interface: %v", err)
	}
	if err := Up(route, "nonexistent0"); err == nil || !strings.HasPrefix(err.Error(), "set nonexistent0 up: ") {
		t.Errorf("up: %v", err)
	}
	if err := Up(nil, "lo"); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("nil socket: %v", err)
	}
	if err := BindPacket(route, 1); err == nil {
		t.Error("a netlink socket was bound as a packet socket")
	}
}
