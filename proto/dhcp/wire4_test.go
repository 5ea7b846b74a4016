package dhcp

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// raw4 is a discover of the known host with the given bytes as options.
func raw4(options ...byte) []byte {
	b := make([]byte, fixed4)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[4:8], "xid!")
	copy(b[offCHAddr:], knownMAC[:])
	copy(b[offCookie:], cookie[:])
	return append(b, options...)
}

func TestOptionPlacement(t *testing.T) {
	end, pad := byte(optEnd), byte(optPad)
	for name, c := range map[string]struct {
		msg []byte
		ok  bool
	}{
		"plain":                      {raw4(53, 1, 1, end), true},
		"no end":                     {raw4(53, 1, 1), true},
		"padding first":              {raw4(pad, pad, 53, 1, 1, end), true},
		"padding between":            {raw4(53, 1, 1, pad, pad, 12, 1, 'x', pad, end), true},
		"padding to the end":         {raw4(append([]byte{53, 1, 1}, make([]byte, 500)...)...), true},
		"end, then a length":         {raw4(53, 1, 1, end, 255, 255, 255), true},
		"only an end":                {raw4(end), false},
		"end before the type":        {raw4(end, 53, 1, 1), false},
		"nothing":                    {raw4(), false},
		"option without a length":    {raw4(53, 1, 1, 12), false},
		"option beyond the message":  {raw4(53, 1, 1, 12, 255, 'x'), false},
		"type of no bytes":           {raw4(53, 0, end), false},
		"type of two bytes":          {raw4(53, 2, 1, 1, end), false},
		"option of 255 bytes":        {raw4(append([]byte{53, 1, 1, 61, 255}, make([]byte, 255)...)...), true},
		"odd sizes of known options": {raw4(53, 1, 1, 50, 3, 1, 2, 3, 54, 0, 57, 1, 9, 61, 1, 1, 52, 0, end), true},
	} {
		if _, ok := parse4(c.msg); ok != c.ok {
			t.Errorf("%s: ok %v, want %v", name, ok, c.ok)
		}
	}
	// The same at every place of an option area that is otherwise padding.
	for _, code := range []byte{optPad, optEnd} {
		for i := range 64 {
			options := bytes.Repeat([]byte{optPad}, 64)
			options[i] = code
			for n := range 255 {
				msg := raw4(options...)
				if i+1 < 64 {
					msg[fixed4+i+1] = byte(n)
				}
				parse4(msg)
			}
		}
	}
}

func TestOverload(t *testing.T) {
	msg := raw4(52, 1, 3, optEnd)
	copy(msg[offFile:], []byte{53, 1, 1, 61, 3, 'a', 'b', 'c', optEnd})
	copy(msg[offSName:], []byte{57, 2, 4, 0, optEnd})
	m, ok := parse4(msg)
	if !ok || m.kind != discover4 || string(m.clientID) != "abc" || m.maxSize != 1024 {
		t.Errorf("ok %v, %+v", ok, m)
	}
	msg[offFile+127] = 9 // beyond the end option: not looked at
	if _, ok := parse4(msg); !ok {
		t.Error("bytes after the end option were looked at")
	}
	copy(msg[offFile:], bytes.Repeat([]byte{0}, 128))
	msg[offFile+127] = 53
	if _, ok := parse4(msg); ok {
		t.Error("an option reaches beyond its field")
	}
}

func TestParse4Refuses(t *testing.T) {
	good := raw4(53, 1, 1, optEnd)
	for n := range fixed4 {
		if _, ok := parse4(good[:n]); ok {
			t.Fatalf("%d bytes accepted", n)
		}
	}
	for name, change := range map[string]func(b []byte){
		"reply":              func(b []byte) { b[0] = 2 },
		"token ring":         func(b []byte) { b[1] = 6 },
		"long hardware addr": func(b []byte) { b[2] = 16 },
		"cookie":             func(b []byte) { b[offCookie]++ },
		"relayed":            func(b []byte) { b[offGIAddr] = 10 },
	} {
		b := bytes.Clone(good)
		change(b)
		if _, ok := parse4(b); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzServer4(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeInform} {
		f.Add(client4(f, kind, knownMAC, wish("10.0.2.100")), uint16(1500), "corp.example lan")
		f.Add(client4(f, kind, otherMAC(1), from("10.0.2.15")), uint16(68), "")
	}
	f.Add(raw4(52, 1, 3, 53, 1, 1, optEnd), uint16(576), "x")
	f.Fuzz(func(t *testing.T, msg []byte, mtu uint16, search string) {
		c := config4()
		c.MTU = int(mtu)
		s := NewServer4(c)
		before := bytes.Clone(msg)
		for i := range 3 {
			m, r := answer(t, s, start, []string{search, search}, msg)
			if m == nil {
				continue
			}
			if len(r.Payload)+28 > max(min(int(mtu), 1500), 576) && mtu != 0 || len(r.Payload) < 300 {
				t.Errorf("reply of %d bytes at MTU %d", len(r.Payload), mtu)
			}
			if i == 0 && !bytes.Equal(r.Payload[4:8], msg[4:8]) {
				t.Error("transaction id changed")
			}
			if y := m.YourIPAddr; !y.IsUnspecified() && !bytes.Equal(y[:3], []byte{10, 0, 2}) {
				t.Errorf("leased %v", y)
			}
		}
		if !bytes.Equal(msg, before) {
			t.Error("the message was changed")
		}
		expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, knownMAC), "offer 10.0.2.100")
	})
}

// FuzzSequence plays many small messages against one server: the table stays
// bounded and consistent.
func FuzzSequence4(f *testing.F) {
	f.Add([]byte{1, 1, 15, 3, 1, 15, 4, 1, 15, 7, 1, 15, 3, 2, 15})
	f.Fuzz(func(t *testing.T, script []byte) {
		s, now := NewServer4(config4()), start
		for ; len(script) >= 3; script = script[3:] {
			msg := raw4(53, 1, script[0]%9, 50, 4, 10, 0, 2, script[2], optEnd)
			binary.BigEndian.PutUint16(msg[offCHAddr+4:], uint16(script[1]))
			now = now.Add(minuteOf(script[2]))
			s.Handle(now, nil, msg)
		}
		if len(s.table.leases) != 17 || s.table.leases[0].key != "" {
			t.Errorf("table %+v", s.table.leases)
		}
		held := map[string]bool{}
		for _, l := range s.table.leases {
			if l.key != "" && held[l.key] {
				t.Errorf("%q holds two addresses", l.key)
			}
			held[l.key] = true
		}
	})
}
