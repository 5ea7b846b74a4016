package rtnl

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExpressMessages(t *testing.T) {
	littleEndian(t)
	for _, tc := range []struct {
		m    *message
		want string
	}{
		{expressRule(unix.RTM_NEWRULE, unix.AF_INET), "44000000 20000506 01000000 00000000 02000000 00000001 00000000 " +
			"08000f00 51500000 08000600 33000000 05001500 02000000 08000a00 51100000 08001000 ff100000"},
		{expressRule(unix.RTM_DELRULE, unix.AF_INET6), "44000000 21000500 01000000 00000000 0a000000 00000001 00000000 " +
			"08000f00 51500000 08000600 33000000 05001500 02000000 08000a00 51100000 08001000 ff100000"},
		{localRouteAs(unix.RTM_DELROUTE, 0, unix.AF_INET, loopbackIndex, ExpressTable),
			"2c000000 19000500 01000000 00000000 02000000 0003fe02 00000000 08000f00 51500000 08000400 01000000"},
	} {
		if got := hexOf(tc.m); got != tc.want {
			t.Errorf("\n got %s\nwant %s", got, tc.want)
		}
	}
}

// A refusal among several answers is that of the earliest request; one of the whole batch
// ends the wait.
func TestBatchAnswers(t *testing.T) {
	ack := func(seq uint32, errno int32) []byte {
		b := make([]byte, unix.NLMSG_HDRLEN+4+unix.NLMSG_HDRLEN)
		host.PutUint32(b, uint32(len(b)))
		host.PutUint16(b[4:], unix.NLMSG_ERROR)
		host.PutUint32(b[8:], seq)
		host.PutUint32(b[16:], uint32(-errno))
		return b
	}
	fresh := func() map[uint32]request {
		return map[uint32]request{
			1: {op: "begin", silent: true}, 2: {op: "two"}, 3: {op: "three", ignore: []unix.Errno{unix.EEXIST}}, 4: {op: "four"},
		}
	}
	join := func(list ...[]byte) (all []byte) {
		for _, b := range list {
			all = append(all, b...)
		}
		return all
	}
	for _, tc := range []struct {
		name     string
		datagram []byte
		closed   int
		want     string
		whole    bool
	}{
		{"all well", join(ack(2, 0), ack(3, 0), ack(4, 0)), 3, "", false},
		{"ignored", join(ack(2, 0), ack(3, int32(unix.EEXIST)), ack(4, 0)), 3, "", false},
		{"the earliest", join(ack(4, int32(unix.ENOENT)), ack(2, int32(unix.EPERM))), 2, "two: operation not permitted", false},
		{"the whole", ack(1, int32(unix.EPERM)), 0, "begin: operation not permitted", true},
		{"somebody else's", join(ack(9, int32(unix.EPERM)), ack(2, 0)), 1, "", false},
		{"twice", join(ack(2, 0), ack(2, int32(unix.EPERM))), 1, "", false},
	} {
		var b batchError
		closed, err := b.answers(tc.datagram, fresh())
		got := ""
		if b.result() != nil {
			got = b.result().Error()
		}
		if err != nil || closed != tc.closed || got != tc.want || b.whole != tc.whole {
			t.Errorf("%s: %d closed, %q, whole %t, %v", tc.name, closed, got, b.whole, err)
		}
	}
	var b batchError
	if _, err := b.answers([]byte{1, 2, 3}, fresh()); err == nil {
		t.Error("three bytes are an answer")
	}
}

// Cut short anywhere, an interface's settings are read or not found, never beyond their end.
func TestParseAcceptLocal(t *testing.T) {
	conf := make([]byte, 33*4)
	binary.NativeEndian.PutUint32(conf[22*4:], 1)
	inet := AppendAttribute(nil, iflaInetConf, conf)
	spec := AppendAttribute(AppendAttribute(nil, unix.AF_INET6, []byte{1, 2, 3}), unix.AF_INET, inet)
	b := AppendAttribute(AppendAttribute(nil, unix.IFLA_IFNAME, []byte("tap0\x00")), unix.IFLA_AF_SPEC, spec)
	if on, found := parseAcceptLocal(b); !on || !found {
		t.Errorf("on %t, found %t", on, found)
	}
	conf[22*4] = 0
	for i := range b {
		if on, _ := parseAcceptLocal(b[:i:i]); on {
			t.Errorf("on in the first %d bytes", i)
		}
	}
}
