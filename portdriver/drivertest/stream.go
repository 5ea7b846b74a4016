package drivertest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

var streamCases = []testCase{
	{
		name:  "TCP/BytesExact",
		holds: "every byte arrives once and in order (RFC 9293, section 1), both ways at the same time",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, bytesExact) },
	},
	{
		name:  "TCP/SmallWrites",
		holds: "bytes are not held back until more come: each line is answered before the next is sent",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, smallWrites) },
	},
	{
		name:  "TCP/ServerSpeaksFirst",
		holds: "a server may greet a client who waits for it, as those of SMTP do (RFC 5321, section 3.1)",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, serverFirst) },
	},
}

func (s *suite) eachFamily(t *testing.T, f func(*suite, *testing.T, family)) {
	for _, fam := range s.families() {
		t.Run(string(fam), func(t *testing.T) { f(s, t, fam) })
	}
}

// sizes are around what pipes, segments and buffers hold, and one that fills all.
var sizes = []int{1, 1460, 4096, 65537, 1 << 20, 16 << 20}

func bytesExact(s *suite, t *testing.T, f family) {
	for _, from := range []place{s.remote(), s.onLoopback()} {
		l, p := s.serve(t, from, f)
		for _, n := range sizes {
			c := s.connect(t, from, p.at(from, f), l)
			if err := c.bothWays(uint64(n), n); err != nil {
				t.Errorf("from %s, %d bytes: %v", from.name, n, err)
			}
		}
	}
}

// bothWays sends n bytes each way at once, ends both directions, and checks what
// came.
func (c pair) bothWays(seed uint64, n int) error {
	errs := make(chan error, 4)
	go func() { errs <- wrap("client sends", produce(c.client, seed, n)) }()
	go func() { errs <- wrap("server sends", produce(c.server, seed+1, n)) }()
	go func() { errs <- wrap("server receives", consume(c.server, seed, n)) }()
	go func() { errs <- wrap("client receives", consume(c.client, seed+1, n)) }()
	var err error
	for range 4 {
		err = errors.Join(err, <-errs)
	}
	return err
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// pattern is an endless stream of bytes that a seed determines.
func pattern(seed uint64, n int) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), int64(n))
}

// produce sends a pattern and ends the direction.
func produce(c halfCloser, seed uint64, n int) error {
	// The wrapper keeps io.Copy from the connection's ReadFrom.
	if _, err := io.CopyBuffer(struct{ io.Writer }{c}, pattern(seed, n), make([]byte, 128<<10)); err != nil {
		return err
	}
	return c.CloseWrite()
}

// consume receives until the end of the direction and compares hashes.
func consume(c io.Reader, seed uint64, n int) error {
	want, got := sha256.New(), sha256.New()
	if _, err := io.Copy(want, pattern(seed, n)); err != nil {
		return err
	}
	count, err := io.CopyBuffer(got, struct{ io.Reader }{c}, make([]byte, 128<<10))
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", count, n, err)
	}
	if count != int64(n) || string(got.Sum(nil)) != string(want.Sum(nil)) {
		return fmt.Errorf("%d bytes with hash %x, want %d with %x", count, got.Sum(nil), n, want.Sum(nil))
	}
	return nil
}

func smallWrites(s *suite, t *testing.T, f family) {
	l, p := s.serve(t, s.remote(), f)
	c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
	for i := range 200 {
		exchange(t, c.client, c.server, fmt.Sprintf("line %d\n", i))
	}
}

func serverFirst(s *suite, t *testing.T, f family) {
	l, p := s.serve(t, s.remote(), f)
	c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
	exchange(t, c.server, c.client, "220 at your service\r\n")
}
