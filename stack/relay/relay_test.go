package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack/stacktest"
)

// random returns n bytes that depend on the seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func TestBytesAreExactBothWays(t *testing.T) {
	stacktest.NoLeaks(t)
	const total = 8 << 20
	out, in := random(1, total), random(2, total)
	for _, c := range []struct {
		name        string
		most, piece int
		messages    int // largest write of the server
	}{
		{"bulk", 0, 0, 1 << 20},
		{"short fills", 5000, 0, 1 << 18},
		{"small pieces", 0, 1000, 40000},
		{"messages", 0, 0, 3000},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFake()
			s.most, s.piece = c.most, c.piece
			r := start(t, s)
			rng := rand.New(rand.NewPCG(1, 2))
			var wg sync.WaitGroup
			wg.Go(func() {
				for rest := in; len(rest) > 0; {
					n := min(1+rng.IntN(c.messages), len(rest))
					if _, err := r.server.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				_ = r.server.CloseWrite()
			})
			wg.Go(func() {
				pieces := rand.New(rand.NewPCG(3, 4))
				for rest := out; len(rest) > 0; {
					var list [][]byte
					for range 1 + pieces.IntN(100) { // also more than one writev takes
						n := min(1+pieces.IntN(70000), len(rest))
						if n == 0 {
							break
						}
						list, rest = append(list, rest[:n]), rest[n:]
					}
					r.deliver(list...)
				}
				r.end()
			})
			got, err := io.ReadAll(r.server)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(out) {
				t.Errorf("outward: %d of %d bytes, %v", len(got), len(out), err)
			}
			wg.Wait()
			r.wait(t)
			if sha256.Sum256(s.sent) != sha256.Sum256(in) {
				t.Errorf("inward: %d of %d bytes differ", len(s.sent), len(in))
			}
			if r.out.Load() != total || r.in.Load() != total {
				t.Errorf("counted %d out, %d in, want %d", r.out.Load(), r.in.Load(), total)
			}
			if !s.closedWrite.Load() || s.aborted.Load() {
				t.Errorf("end of stream passed on: %v, reset: %v", s.closedWrite.Load(), s.aborted.Load())
			}
		})
	}
}

// Messages of exactly the size at which reading changes its ways, one below and
// one above, alone and in a row.
func TestMessageSizesAroundTheSwitch(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, size := range []int{1, messageLen - 1, messageLen, messageLen + 1, 2*messageLen - 1, 2 * messageLen, 2*messageLen + 1} {
		for _, most := range []int{0, 1000, messageLen - 1, messageLen} {
			s := newFake()
			s.most = most
			r := start(t, s)
			message := random(uint64(size), size)
			for i := range 8 {
				if _, err := r.server.Write(message); err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 { // otherwise two may be read as one
					stacktest.Eventually(t, "the message", func() bool { return s.numSent() == (i+1)*size })
				}
			}
			_ = r.server.CloseWrite()
			r.end()
			r.wait(t)
			if !bytes.Equal(s.sent, bytes.Repeat(message, 8)) {
				t.Errorf("size %d, fills of %d: %d bytes arrived, want %d unchanged", size, most, len(s.sent), 8*size)
			}
		}
	}
}

func TestServerEndsItsHalfFirst(t *testing.T) {
	stacktest.NoLeaks(t)
	s := newFake()
	r := start(t, s)
	if _, err := r.server.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	_ = r.server.CloseWrite()
	stacktest.Eventually(t, "the end of stream in the container", s.closedWrite.Load)
	if string(s.sent) != "bye" {
		t.Errorf("before the end: %q", s.sent)
	}
	r.running(t)
	data := random(1, 1<<20)
	s.deliver(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(r.server, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("data after the server's end: %v", err)
	}
	r.running(t)
	s.end()
	if n, err := r.server.Read(got); n != 0 || err != io.EOF {
		t.Errorf("server read %d bytes, %v, want the end", n, err)
	}
	r.wait(t)
	if s.aborted.Load() {
		t.Error("an orderly end became a reset")
	}
}

func TestContainerEndsItsHalfFirst(t *testing.T) {
	stacktest.NoLeaks(t)
	s := newFake()
	r := start(t, s)
	s.deliver([]byte("request"))
	s.end()
	got, err := io.ReadAll(r.server)
	if err != nil || string(got) != "request" {
		t.Fatalf("server read %q, %v", got, err)
	}
	r.running(t)
	answer := random(1, 4<<20)
	if _, err := r.server.Write(answer); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "the answer", func() bool { return s.numSent() == len(answer) })
	r.running(t)
	_ = r.server.Close()
	r.wait(t)
	if !bytes.Equal(s.sent, answer) || !s.closedWrite.Load() || s.aborted.Load() {
		t.Errorf("%d bytes, end of stream %v, reset %v", len(s.sent), s.closedWrite.Load(), s.aborted.Load())
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	stacktest.NoLeaks(t)
	s := newFake()
	r := start(t, s)
	greeting := "220 ready\r\n"
	if _, err := r.server.Write([]byte(greeting)); err != nil {
		t.Fatal(err)
	}
	stacktest.Eventually(t, "the greeting", func() bool { return s.numSent() == len(greeting) })
	s.deliver([]byte("USER me\r\n"))
	buf := make([]byte, 9)
	if _, err := io.ReadFull(r.server, buf); err != nil || string(buf) != "USER me\r\n" {
		t.Errorf("the answer to the greeting: %q, %v", buf, err)
	}
	s.end()
	_ = r.server.Close()
	r.wait(t)
	if got := string(s.sent); got != greeting {
		t.Errorf("%q", got)
	}
}

func TestServerResets(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, busy := range []bool{false, true} {
		s := newFake()
		r := start(t, s)
		if busy {
			s.deliver(random(1, 32<<20)) // more than sockets hold: the write waits
			stacktest.Eventually(t, "some bytes to be sent", func() bool { return r.out.Load() > 0 })
		}
		_ = r.server.SetLinger(0)
		_ = r.server.Close()
		r.wait(t)
		if !s.aborted.Load() || s.closedWrite.Load() {
			t.Errorf("busy %v: container reset %v, got an end of stream %v", busy, s.aborted.Load(), s.closedWrite.Load())
		}
	}
}

// The container resets: idle, while the server does not read, and while the
// container's own window is closed.
func TestContainerResets(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, r *running)
	}{
		{"idle", func(*testing.T, *running) {}},
		{"server does not read", func(t *testing.T, r *running) {
			r.deliver(random(1, 64<<20))
			settle(t, r.out.Load)
		}},
		{"container does not read", func(t *testing.T, r *running) {
			r.setRoom(0)
			if _, err := r.server.Write(random(1, 10000)); err != nil {
				t.Fatal(err)
			}
		}},
		{"after the container's end of stream, server does not read", func(t *testing.T, r *running) {
			r.deliver(random(1, 64<<20))
			r.end()
			settle(t, r.out.Load)
		}},
		{"after the server's end of stream, server does not read", func(t *testing.T, r *running) {
			_ = r.server.CloseWrite()
			r.deliver(random(1, 64<<20))
			settle(t, r.out.Load)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			stacktest.NoLeaks(t)
			r := start(t, newFake())
			c.prepare(t, r)
			r.reset()
			r.wait(t)
			_ = r.server.SetReadDeadline(time.Now().Add(stacktest.Patience))
			_, err := io.Copy(io.Discard, r.server)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server sees %v, want a reset", err)
			}
		})
	}
}

// settle waits until a count has stopped growing: the writer waits for room.
func settle(t *testing.T, count func() uint64) {
	t.Helper()
	last, since := uint64(0), time.Now()
	stacktest.Eventually(t, "the writer to wait", func() bool {
		if n := count(); n != last || n == 0 {
			last, since = n, time.Now()
		}
		return time.Since(since) > 100*time.Millisecond
	})
}

// What came before a reset is delivered before it, as one kernel's reader sees it.
func TestContainerResetsBehindBytes(t *testing.T) {
	s := newFake()
	s.deliver([]byte("g"), []byte("o"))
	s.reset()
	r := start(t, s)
	got, err := io.ReadAll(r.server)
	if string(got) != "go" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server sees %q and %v, want a reset behind the bytes", got, err)
	}
	r.wait(t)
	if s.closedWrite.Load() {
		t.Error("a reset stream was given an end of stream")
	}
}

// A container that does not read stops the server; nothing piles up here.
func TestSlowContainerHoldsTheServerUp(t *testing.T) {
	stacktest.NoLeaks(t)
	const total = 64 << 20
	s := newFake()
	s.setRoom(100000)
	r := start(t, s)
	data := random(1, 1<<20)
	var written sync.WaitGroup
	written.Go(func() {
		for range total / len(data) {
			if _, err := r.server.Write(data); err != nil {
				t.Error(err)
				return
			}
		}
		_ = r.server.CloseWrite()
	})
	stacktest.Eventually(t, "the room to be used", func() bool { return s.numSent() == 100000 })
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 { // wakes for nothing
		wake(s.writable)
		runtime.Gosched()
	}
	if n := s.numSent(); n != 100000 {
		t.Errorf("%d bytes taken without room", n)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+1<<20 {
		t.Errorf("heap grew from %d to %d bytes while nothing moved", before.HeapAlloc, after.HeapAlloc)
	}
	s.setRoom(1 << 40)
	written.Wait()
	s.end()
	r.wait(t)
	if len(s.sent) != total {
		t.Errorf("%d bytes arrived, want %d", len(s.sent), total)
	}
}

// A server that does not read stops the container.
func TestSlowServerHoldsTheContainerUp(t *testing.T) {
	stacktest.NoLeaks(t)
	const total = 64 << 20
	data := random(1, total)
	s := newFake()
	r := start(t, s)
	s.deliver(data)
	s.end()
	settle(t, r.out.Load)
	if left := s.numUnread(); left < total/2 || uint64(total-left) != r.out.Load() {
		t.Errorf("%d bytes left in the stream, %d counted out of %d", left, r.out.Load(), total)
	}
	got, err := io.ReadAll(r.server)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	_ = r.server.Close()
	r.wait(t)
}

func TestManyRelaysLeaveNothing(t *testing.T) {
	stacktest.NoLeaks(t)
	var wg sync.WaitGroup
	for i := range 200 {
		s := newFake()
		r := start(t, s)
		wg.Go(func() {
			message := random(uint64(i), 1+i*200)
			s.deliver(message)
			got := make([]byte, len(message))
			if _, err := io.ReadFull(r.server, got); err != nil || !bytes.Equal(got, message) {
				t.Errorf("relay %d outward: %v", i, err)
			}
			if _, err := r.server.Write(got); err != nil {
				t.Error(err)
			}
			stacktest.Eventually(t, "the echo", func() bool { return s.numSent() == len(message) })
			switch i % 4 {
			case 0:
				s.end()
				_ = r.server.Close()
			case 1:
				_ = r.server.SetLinger(0)
				_ = r.server.Close()
			case 2:
				s.reset()
			case 3:
				_ = r.server.CloseWrite()
				s.end()
			}
			r.wait(t)
		})
	}
	wg.Wait()
}

// What a message or a super-segment costs the garbage collector: nothing.
func TestRelayDoesNotAllocate(t *testing.T) {
	host, server := stacktest.TCPPair(t)
	raw, err := host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := newHostReader(raw), newHostWriter(raw)
	defer reader.release()
	message, buf, bulk := make([]byte, 100), make([]byte, 100), make([]byte, 3*messageLen)
	bufs := [][]byte{message, message}
	for name, f := range map[string]func(){
		"read a message": func() {
			_, _ = server.Write(message)
			if n, err := reader.wait(); n != 100 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			if err := reader.readFull(buf); err != nil {
				t.Error(err)
			}
		},
		"write pieces": func() {
			if n, err := writer.write(bufs); n != 200 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			_, _ = io.ReadFull(server, bulk[:200])
		},
	} {
		if n := testing.AllocsPerRun(500, f); n != 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
