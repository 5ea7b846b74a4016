package tap

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// wire builds a header as a kernel would, field by field.
func wire(flags, gso uint8, fields ...uint16) []byte {
	b := []byte{flags, gso}
	for _, f := range fields {
		b = binary.NativeEndian.AppendUint16(b, f)
	}
	return append(b, make([]byte, HeaderLen-len(b))...)
}

func TestHeaderTable(t *testing.T) {
	for _, c := range []struct {
		name string
		wire []byte
		h    Header
		ok   bool
	}{
		{"nothing", wire(0, 0), Header{}, true},
		{"partial checksum", wire(1, 0, 54, 0, 34, 16), Header{NeedsCsum: true, HdrLen: 54, CsumStart: 34, CsumOffset: 16}, true},
		{"vouched for", wire(2, 0), Header{DataValid: true}, true},
		{"TCP over IPv4", wire(1, 1, 66, 1448, 34, 16), Header{NeedsCsum: true, GSO: GSOTCPv4, HdrLen: 66, Segment: 1448, CsumStart: 34, CsumOffset: 16}, true},
		{"TCP over IPv6", wire(1, 4, 86, 1428, 54, 16), Header{NeedsCsum: true, GSO: GSOTCPv6, HdrLen: 86, Segment: 1428, CsumStart: 54, CsumOffset: 16}, true},
		{"TCP with ECN", wire(1, 1|0x80, 66, 1448, 34, 16), Header{NeedsCsum: true, GSO: GSOTCPv4, HdrLen: 66, Segment: 1448, CsumStart: 34, CsumOffset: 16}, true},
		{"UDP", wire(1, 5, 42, 1400, 34, 6), Header{NeedsCsum: true, GSO: GSOUDP, HdrLen: 42, Segment: 1400, CsumStart: 34, CsumOffset: 6}, true},
		{"largest values", wire(1, 1, 65535, 65535, 65535, 65535), Header{NeedsCsum: true, GSO: GSOTCPv4, HdrLen: 65535, Segment: 65535, CsumStart: 65535, CsumOffset: 65535}, true},
		{"segment size without kind", wire(0, 0, 0, 1400), Header{}, true},
		{"UFO, which no one sends any more", wire(1, 3, 42, 1400), Header{}, false},
		{"unknown kind", wire(1, 7, 42, 1400), Header{}, false},
		{"kind without segment size", wire(1, 1, 66, 0, 34, 16), Header{}, false},
	} {
		h, ok := ParseHeader(c.wire)
		if ok != c.ok || ok && h != c.h {
			t.Errorf("%s: parsed %+v, %v", c.name, h, ok)
		}
	}
	for n := range 10 {
		if _, ok := ParseHeader(make([]byte, n)); ok {
			t.Errorf("a header of %d bytes was accepted", n)
		}
	}
	if _, ok := ParseHeader(make([]byte, 10)); !ok {
		t.Error("the short header of packet sockets was refused")
	}
}

func TestPutOverwritesEverything(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, HeaderLen)
	Header{NeedsCsum: true, GSO: GSOUDP, HdrLen: 42, Segment: 1400, CsumStart: 34, CsumOffset: 6}.Put(b)
	if want := wire(1, 5, 42, 1400, 34, 6); !bytes.Equal(b, want) {
		t.Errorf("% x, want % x", b, want)
	}
	for i := range b {
		b[i] = 0xff
	}
	Header{}.Put(b)
	if !bytes.Equal(b, make([]byte, HeaderLen)) {
		t.Errorf("% x, want zeros", b)
	}
}

func TestHeaderDoesNotAllocate(t *testing.T) {
	b := make([]byte, HeaderLen)
	n := testing.AllocsPerRun(100, func() {
		Header{NeedsCsum: true, GSO: GSOTCPv4, Segment: 1448}.Put(b)
		if _, ok := ParseHeader(b); !ok {
			t.Error("refused")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestOffloadsString(t *testing.T) {
	for want, o := range map[string]Offloads{
		"none": {}, "csum": {Csum: true}, "csum,tso": {Csum: true, TSO: true}, "csum,tso,uso": {Csum: true, TSO: true, USO: true},
	} {
		if got := o.String(); got != want {
			t.Errorf("%+v: %q, want %q", o, got, want)
		}
	}
}

// FuzzHeader: whatever is accepted says the same after a round trip.
func FuzzHeader(f *testing.F) {
	f.Add(wire(1, 1, 66, 1448, 34, 16))
	f.Add(wire(2, 0))
	f.Add(wire(1, 0x85, 42, 1400, 34, 6))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := ParseHeader(b)
		if !ok {
			return
		}
		if (h.GSO == GSONone) != (h.Segment == 0) {
			t.Fatalf("kind %d with segment size %d", h.GSO, h.Segment)
		}
		h.DataValid = false // never written
		out := make([]byte, HeaderLen)
		h.Put(out)
		if again, ok := ParseHeader(out); !ok || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, ok)
		}
	})
}
