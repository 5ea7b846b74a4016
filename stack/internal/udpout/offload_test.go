package udpout

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/internal/flow"
)

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestDatagramsOfEverySize(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		s := listenOn(t, outside[0])
		for i, size := range []int{0, 1, 1472, 8972, 8973, 60000, 65507} {
			want := pattern(size)
			tb.Handle(Datagram{From: client, To: s.addr, Payload: want, TTL: 64})
			tb.Flush()
			got, mapped := s.read(t)
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes: got %d", size, len(got))
			}
			s.write(t, got, mapped)
			back := c.received(t, i+1)[i]
			if !bytes.Equal(back.payload, want) || back.segment != 0 {
				t.Errorf("%d bytes: %d came back, segment %d", size, len(back.payload), back.segment)
			}
		}
	})
}

func TestSegmentedDatagramIsTakenApart(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, _ := newTable(t, nil)
		s := listenOn(t, outside[0])
		want := pattern(30*1400 + 42)
		tb.Handle(Datagram{From: client, To: s.addr, Payload: want, Segment: 1400, TTL: 64})
		readSegments(t, s, want, 1400)
		// More datagrams than one send may hold.
		want = pattern(64_000)
		tb.Handle(Datagram{From: client, To: s.addr, Payload: want, Segment: 100, TTL: 64})
		readSegments(t, s, want, 100)
	})
}

// readSegments expects want in datagrams of size bytes.
func readSegments(t *testing.T, s server, want []byte, size int) {
	t.Helper()
	for len(want) > 0 {
		b, _ := s.read(t)
		if !bytes.Equal(b, want[:min(size, len(want))]) {
			t.Fatalf("got %d bytes with %d to come", len(b), len(want))
		}
		want = want[len(b):]
	}
}

func TestBatchKeepsBoundariesAndOrder(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, _ := newTable(t, nil)
		s, other := listenOn(t, outside[0]), listenOn(t, outside[1])
		var want [][]byte
		put := func(to server, n int) {
			b := pattern(n)
			if n >= 4 {
				binary.BigEndian.PutUint32(b, uint32(len(want)))
			}
			tb.Handle(Datagram{From: client, To: to.addr, Payload: b, TTL: 64})
			if to == s {
				want = append(want, b)
			}
			clear(b[len(b):]) // the reader reuses its buffer
		}
		for range 70 { // more than one batch
			put(s, 1200)
		}
		put(s, 900) // a shorter one ends a batch
		put(s, 900)
		put(s, 1200) // a longer one cannot be added
		put(other, 1200)
		put(s, 1200)
		put(s, 0)
		put(s, 20_000)
		put(s, 1200)
		tb.Flush()
		for i, w := range want {
			if b, _ := s.read(t); !bytes.Equal(b, w) {
				t.Fatalf("datagram %d: %d bytes, want %d", i, len(b), len(w))
			}
		}
		other.read(t)
		s.silent(t)
	})
}

func TestBatchIsCopied(t *testing.T) {
	tb, _ := newTable(t, nil)
	s := listenOn(t, outside4[0])
	buf := []byte("first")
	d := Datagram{From: client4, To: s.addr, Payload: buf, TTL: 64}
	tb.Handle(d)
	copy(buf, "other")
	tb.Handle(d)
	copy(buf, "later")
	tb.Flush()
	for _, want := range []string{"first", "other"} {
		if b, _ := s.read(t); string(b) != want {
			t.Errorf("got %q, want %q", b, want)
		}
	}
}

func TestTrainArrivesAsOne(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		s := listenOn(t, outside[0])
		send(tb, client, s.addr, "x")
		_, mapped := s.read(t)
		raw, err := s.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var serr error
		_ = raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1400)
		})
		if serr != nil {
			t.Fatal(serr)
		}
		want := pattern(20*1400 + 7)
		s.write(t, want, mapped)
		var got []byte
		eventually(t, "the train", func() bool {
			got = nil
			for _, a := range c.received(t, 1) {
				got = append(got, a.payload...)
			}
			return len(got) == len(want)
		})
		if !bytes.Equal(got, want) {
			t.Error("bytes differ")
		}
		if a := c.received(t, 1); len(a) != 1 || a[0].segment != 1400 {
			t.Errorf("%d arrivals, segment %d", len(a), a[0].segment)
		}
	})
}

// TestSegmentsBeyondTheMTU sends batches over a link that cannot segment them.
func TestSegmentsBeyondTheMTU(t *testing.T) {
	r := nstest.NewRouter(t)
	tb, _ := newTable(t, nil)
	var s server
	r.Do(t, func() error {
		s = listenOn(t, nstest.Behind)
		return nil
	})
	want := pattern(20 * 2000)
	for range 2 {
		tb.Handle(Datagram{From: client4, To: s.addr, Payload: want, Segment: 2000, TTL: 64})
		readSegments(t, s, want, 2000)
	}
	for i := range 20 {
		tb.Handle(Datagram{From: client4, To: s.addr, Payload: want[i*2000:][:2000], TTL: 64})
	}
	tb.Flush()
	readSegments(t, s, want, 2000)
	if n := count(tb, flow.UDPSendFailed); n != 0 {
		t.Errorf("%d sends failed", n)
	}
}
