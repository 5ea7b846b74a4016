package relay

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/postern-net/postern/stack/stacktest"
)

// write sends data in random pieces of at most most bytes, and an end of stream.
func write(t testing.TB, c conn, data []byte, most int, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	for rest := data; len(rest) > 0; {
		n := min(1+rng.IntN(most), len(rest))
		if _, err := c.Write(rest[:n]); err != nil {
			t.Error(err)
			return
		}
		rest = rest[n:]
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
}

// checkStream reads to the end and compares.
func checkStream(t testing.TB, what string, r io.Reader, want []byte) {
	t.Helper()
	h, sum := sha256.New(), sha256.Sum256(want)
	n, err := io.Copy(h, r)
	if err != nil || n != int64(len(want)) || !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("%s: %d of %d bytes, equal %v, %v", what, n, len(want), bytes.Equal(h.Sum(nil), sum[:]), err)
	}
}

// exchange sends data both ways at once and checks everything to the end.
func (j *joined) exchange(t testing.TB, out, in []byte, most int) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { write(t, j.client, out, most, 1) })
	wg.Go(func() { write(t, j.server, in, most, 2) })
	wg.Go(func() { checkStream(t, "in", j.client, in) })
	checkStream(t, "out", j.server, out)
	wg.Wait()
	if err := j.end(t); err != nil {
		t.Errorf("ended with %v", err)
	}
	if j.out.Load() != uint64(len(out)) || j.in.Load() != uint64(len(in)) {
		t.Errorf("counted %d out, %d in, want %d and %d", j.out.Load(), j.in.Load(), len(out), len(in))
	}
}

func TestSpliceExactBytes(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 1)
	for kind := range pairs {
		for _, size := range []int{0, 1, 100, messageLen - 1, messageLen, messageLen + 1, pipeLen, pipeLen + 1, 3<<20 + 17} {
			for _, most := range []int{1500, 40000, 1 << 20} {
				t.Run(fmt.Sprintf("%s/%d/%d", kind, size, most), func(t *testing.T) {
					join(t, ls.All()[0], kind, nil).exchange(t, random(1, size), random(2, size/2), most)
				})
			}
		}
	}
	stats := ls.Stats()
	if stats.Flows != 0 || stats.Spliced == 0 || stats.Copied == 0 || stats.Pipes > keepPipes {
		t.Errorf("%+v", stats)
	}
}

func TestSpliceLargeStream(t *testing.T) {
	stacktest.NoLeaks(t)
	for kind := range pairs {
		join(t, newLoops(t, 1).All()[0], kind, nil).exchange(t, random(1, 64<<20), random(2, 64<<20), 1<<20)
	}
}

func TestSpliceTinyPieces(t *testing.T) {
	stacktest.NoLeaks(t)
	for kind := range pairs {
		join(t, newLoops(t, 1).All()[0], kind, nil).exchange(t, random(1, 100000), random(2, 100000), 7)
	}
}

func TestSpliceHalfClose(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	for kind := range pairs {
		for _, clientFirst := range []bool{true, false} {
			t.Run(fmt.Sprint(kind, clientFirst), func(t *testing.T) {
				j := join(t, l, kind, nil)
				first, second := j.client, j.server
				if !clientFirst {
					first, second = second, first
				}
				write(t, first, []byte("request"), 10, 1)
				checkStream(t, "request", second, []byte("request"))
				j.lives(t)
				answer := random(3, 5<<20)
				var wg sync.WaitGroup
				wg.Go(func() { write(t, second, answer, 100000, 2) })
				checkStream(t, "answer", first, answer)
				wg.Wait()
				if err := j.end(t); err != nil {
					t.Errorf("ended with %v", err)
				}
			})
		}
	}
}

func TestSplicePrefix(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	for kind := range pairs {
		for _, size := range []int{1, 107, 8 << 20} { // also more than a socket takes at once
			prefix, data := random(1, size), random(2, 1<<20)
			j := join(t, l, kind, prefix)
			var wg sync.WaitGroup
			wg.Go(func() { write(t, j.client, data, 100000, 1) })
			wg.Go(func() { write(t, j.server, data, 100000, 1) })
			wg.Go(func() { checkStream(t, "in", j.client, data) })
			checkStream(t, "prefix and data", j.server, append(prefix, data...))
			wg.Wait()
			if err := j.end(t); err != nil || j.out.Load() != uint64(len(data)) {
				t.Errorf("ended with %v, counted %d", err, j.out.Load())
			}
		}
	}
}

// A server that waits for the prefix only, and a client that sends nothing.
func TestSplicePrefixAlone(t *testing.T) {
	stacktest.NoLeaks(t)
	j := join(t, newLoops(t, 1).All()[0], "tcp", []byte("PROXY"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(j.server, got); err != nil || string(got) != "PROXY" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSpliceDialogue(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	for kind := range pairs {
		j := join(t, l, kind, nil)
		for i := range 300 {
			message := random(uint64(i), 1+i*211)
			got := make([]byte, len(message))
			from, to := j.client, j.server
			if i%2 == 1 {
				from, to = to, from
			}
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = from.Write(message) })
			if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, message) {
				t.Fatalf("message %d: %v", i, err)
			}
			wg.Wait()
		}
		_, _ = j.client.CloseWrite(), j.server.CloseWrite()
		if err := j.end(t); err != nil {
			t.Errorf("ended with %v", err)
		}
	}
}

func TestSpliceManyFlows(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 2)
	n := 1000
	if raceEnabled {
		n = 300
	}
	var wg sync.WaitGroup
	gate := make(chan struct{}, 300) // bounds the test's own goroutines
	list := make([]*joined, n)
	for i := range list {
		list[i] = join(t, ls.Least(), "tcp", nil)
	}
	if a, b := ls.All()[0].Flows(), ls.All()[1].Flows(); a+b != n || a-b > 1 || b-a > 1 {
		t.Errorf("%d and %d flows", a, b)
	}
	for i, j := range list {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			j.exchange(t, random(uint64(i), rng.IntN(200000)), random(uint64(i)+1, rng.IntN(200000)), 1+rng.IntN(50000))
		})
	}
	wg.Wait()
	stacktest.Eventually(t, "no flow to be left", func() bool { return ls.Stats().Flows == 0 })
}
