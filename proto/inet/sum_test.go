package inet

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// slowSum is RFC 1071's definition, word by word.
func slowSum(b []byte, sum uint32) uint16 {
	total := uint64(sum)
	for i := 0; i < len(b); i += 2 {
		w := uint64(b[i]) << 8
		if i+1 < len(b) {
			w |= uint64(b[i+1])
		}
		total += w
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

func TestSumIsRFC1071(t *testing.T) {
	// The example of RFC 1071 section 3.
	if got := Fold(Sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0)); got != 0xddf2 {
		t.Errorf("sum %#x, want 0xddf2", got)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32()) | byte(n%2)*0xff // half of the cases are all ones
		}
		initial := r.Uint32() | uint32(n%3/2)*0xffffffff
		if got, want := Fold(Sum(b, initial)), slowSum(b, initial); got != want {
			t.Errorf("%d bytes, initial %#x: %#x, want %#x", n, initial, got, want)
		}
		half := n / 4 * 2
		if got, want := Fold(Sum(b[half:], Sum(b[:half], 0))), slowSum(b, 0); got != want {
			t.Errorf("%d bytes in two pieces: %#x, want %#x", n, got, want)
		}
	}
}

func TestPseudoSumIsThatOfTheBytes(t *testing.T) {
	src4, dst4 := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("192.0.2.1")
	want := slowSum([]byte{10, 0, 2, 100, 192, 0, 2, 1, 0, 17, 0x12, 0x34}, 0)
	if got := Fold(PseudoSum(src4, dst4, ProtoUDP, 0x1234)); got != want {
		t.Errorf("IPv4: %#x, want %#x", got, want)
	}
	src6, dst6 := netip.MustParseAddr("fd00::100"), netip.MustParseAddr("2001:db8::1")
	s, d := src6.As16(), dst6.As16()
	b := append(append(s[:], d[:]...), 0, 1, 2, 3, 0, 0, 0, 58)
	if got, want := Fold(PseudoSum(src6, dst6, ProtoICMPv6, 0x10203)), slowSum(b, 0); got != want {
		t.Errorf("IPv6: %#x, want %#x", got, want)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint32(0xffffffff))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, initial uint32) {
		if got, want := Fold(Sum(b, initial)), slowSum(b, initial); got != want {
			t.Errorf("%#x, want %#x", got, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	buf := make([]byte, 1500)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		Sum(buf, 0)
	}
}
