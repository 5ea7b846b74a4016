package relay

import (
	"bytes"
	"io"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

// narrow has the way from b to the server hold little. The way into the loop stays as
// it is, so that what comes is bulk data.
func (j *joined) narrow(t testing.TB, b int) {
	t.Helper()
	if err := unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_SNDBUF, 50<<10); err != nil {
		t.Fatal(err)
	}
	if err := j.server.(interface{ SetReadBuffer(int) error }).SetReadBuffer(50 << 10); err != nil {
		t.Fatal(err)
	}
}

// stuckFlows begins flows whose servers do not read, each with data under way.
func stuckFlows(t *testing.T, l *Loop, n int, data []byte, wg *sync.WaitGroup) []*joined {
	t.Helper()
	list := make([]*joined, n)
	for i := range list {
		j, a, b := prepared(t, l, "tcp")
		j.narrow(t, b)
		j.splice(t, a, b, nil)
		wg.Go(func() { write(t, j.client, data, 1<<20, 1) })
		list[i] = j
	}
	return list
}

// More flows are stuck than there are pipes: others copy, and every byte arrives.
func TestSplicePipeBound(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 1)
	l := ls.All()[0]
	var wg sync.WaitGroup
	data := random(1, 2<<20)
	list := stuckFlows(t, l, maxPipes+16, data, &wg)
	stacktest.Eventually(t, "all pipes to be in use", func() bool { return ls.Stats().Pipes == maxPipes })
	before := ls.Stats()
	join(t, l, "tcp", nil).exchange(t, random(2, 8<<20), random(3, 8<<20), 1<<20)
	after := ls.Stats()
	if after.PipesRefused == before.PipesRefused || after.Copied < before.Copied+8<<20 {
		t.Errorf("before %+v, after %+v: was it not copied?", before, after)
	}
	for _, j := range list {
		j.lives(t)
		checkStream(t, "stuck", j.server, data)
		_ = j.server.CloseWrite()
		if err := j.end(t); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if s := ls.Stats(); s.Pipes > keepPipes {
		t.Errorf("%d pipes kept", s.Pipes)
	}
	onLoop(t, l, func() {
		if l.held != 0 || len(l.free) > keepMessages {
			t.Errorf("%d messages held, %d free", l.held, len(l.free))
		}
	})
}

// Flows that end with bytes in their pipes give nothing of them to others.
func TestSpliceResetWithFullPipes(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 1)
	l := ls.All()[0]
	for range 3 {
		var fl floods
		var list []*joined
		for range 2 * keepPipes {
			j, a, b := prepared(t, l, "tcp")
			j.narrow(t, b)
			j.splice(t, a, b, nil)
			fl.begin(j.client)
			list = append(list, j)
		}
		stacktest.Eventually(t, "pipes to hold bytes", func() bool {
			n := 0 // others have a message pending instead
			onLoop(t, l, func() {
				for _, j := range list {
					if j.flow.dirs[sideA].pipe != nil {
						n++
					}
				}
			})
			return n >= len(list)/2
		})
		for i, j := range list {
			sendReset([]conn{j.client, j.server}[i%2])
			if err := j.end(t); err == nil {
				t.Error("ended in order")
			}
		}
		fl.Wait()
		join(t, l, "tcp", nil).exchange(t, random(1, 4<<20), random(2, 4<<20), 1<<20)
	}
}

// The kernel refuses pipes, or what is to be done to them.
func TestSpliceWithoutPipes(t *testing.T) {
	makes, sizes := pipe2, setPipeSize
	limited := func(limit int) func(int, int) (int, error) {
		return func(fd, n int) (int, error) {
			if n > limit {
				return 0, unix.EPERM
			}
			return sizes(fd, n)
		}
	}
	for _, c := range []struct {
		name    string
		pipe2   func([]int, int) error
		size    func(fd, n int) (int, error)
		spliced bool
	}{
		{"no descriptors", func([]int, int) error { return unix.EMFILE }, sizes, false},
		{"no size at all", makes, limited(0), false},
		{"tiny pipes", makes, limited(minPipeLen - 1), false},
		{"smaller pipes", makes, limited(minPipeLen), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			stacktest.NoLeaks(t)
			pipe2, setPipeSize = c.pipe2, c.size
			defer func() { pipe2, setPipeSize = makes, sizes }()
			ls, err := NewLoops(1)
			if err != nil {
				t.Fatal(err)
			}
			defer ls.Close()
			for kind := range pairs {
				join(t, ls.All()[0], kind, nil).exchange(t, random(1, 8<<20), random(2, 8<<20), 1<<20)
			}
			if s := ls.Stats(); s.Spliced > 0 != c.spliced || s.PipesRefused > 0 == c.spliced {
				t.Errorf("%+v", s)
			}
		})
	}
}

// The process has really no descriptor left; once it has, pipes are used again.
func TestSpliceOutOfDescriptors(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 1)
	j := join(t, ls.All()[0], "tcp", nil)
	next := join(t, ls.All()[0], "tcp", nil)
	t.Run("none left", func(t *testing.T) {
		limitDescriptors(t, 0)
		j.exchange(t, random(1, 8<<20), random(2, 8<<20), 1<<20)
		if s := ls.Stats(); s.Spliced != 0 || s.PipesRefused == 0 || s.Pipes != 0 {
			t.Errorf("%+v", s)
		}
	})
	stacktest.Eventually(t, "splicing again", func() bool {
		var wg sync.WaitGroup
		data := random(3, 1<<20)
		wg.Go(func() { _, _ = next.client.Write(data) })
		got := make([]byte, len(data))
		if _, err := io.ReadFull(next.server, got); err != nil || !bytes.Equal(got, data) {
			t.Fatal(err)
		}
		wg.Wait()
		return ls.Stats().Spliced > 0
	})
}

// splice(2) is refused for these sockets.
func TestSpliceRefused(t *testing.T) {
	stacktest.NoLeaks(t)
	ls := newLoops(t, 1)
	for kind := range pairs {
		j := join(t, ls.All()[0], kind, nil)
		onLoop(t, j.loop, func() { j.flow.dirs[sideA].copies, j.flow.dirs[sideB].copies = true, true })
		j.exchange(t, random(1, 8<<20), random(2, 8<<20), 1<<20)
	}
	if s := ls.Stats(); s.Spliced != 0 {
		t.Errorf("%+v", s)
	}
}

// Flows hold all the messages that they may: bytes wait in their sockets instead.
func TestSpliceMessageBound(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	onLoop(t, l, func() { l.msg, l.held = nil, maxMessages })
	defer onLoop(t, l, func() { l.held -= maxMessages })
	for kind := range pairs {
		for _, most := range []int{100, 1 << 20} {
			j, a, b := prepared(t, l, kind)
			j.narrow(t, b)
			j.splice(t, a, b, nil)
			j.exchange(t, random(1, 300000), random(2, 300000), most)
		}
	}
	onLoop(t, l, func() {
		if l.held != maxMessages || l.msg != nil || len(l.free) > 0 {
			t.Errorf("%d messages held, %d free", l.held, len(l.free))
		}
	})
}

// Receivers that take nothing do not hold others up, nor does one who takes all.
func TestSpliceOthersGoOn(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	var fl floods
	var list []*joined
	for range 20 {
		j, a, b := prepared(t, l, "tcp")
		j.narrow(t, b)
		j.splice(t, a, b, nil)
		fl.begin(j.client)
		list = append(list, j)
	}
	greedy := join(t, l, "tcp", nil)
	fl.begin(greedy.client)
	fl.Go(func() { _, _ = io.Copy(io.Discard, greedy.server) })
	stacktest.Eventually(t, "the greedy flow", func() bool { return greedy.out.Load() > 8<<20 })
	from := greedy.out.Load()
	join(t, l, "tcp", nil).exchange(t, random(2, 8<<20), random(3, 8<<20), 1<<20)
	j := join(t, l, "tcp", nil)
	for range 100 {
		got := make([]byte, 64)
		_, _ = j.client.Write(got)
		if _, err := io.ReadFull(j.server, got); err != nil {
			t.Fatal(err)
		}
	}
	if greedy.out.Load() == from {
		t.Error("the greedy flow stood still")
	}
	for _, j := range append(list, greedy, j) {
		onLoop(t, l, func() { j.flow.Abort(nil) })
		_ = j.end(t)
	}
	fl.Wait()
}

// One turn moves no more than its share.
func TestSpliceTurn(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	j, a, b := prepared(t, l, "tcp")
	if err := unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	data := random(1, 4<<20)
	wg.Go(func() { write(t, j.client, data, 1<<20, 1) })
	wg.Go(func() { checkStream(t, "out", j.server, data) })
	for begun := false; !begun; {
		n, err := unix.IoctlGetInt(a, unix.SIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		begun = n > 1000
	}
	onLoop(t, l, func() {
		j.flow = l.Splice(a, b, Splice{Out: &j.out, Done: func(err error) { j.calls.Add(1); j.ended <- err }})
		for j.out.Load() < uint64(len(data)) && j.flow.failure == nil {
			j.flow.mark(sideA, unix.EPOLLIN)
			j.flow.mark(sideB, unix.EPOLLOUT)
			from := j.out.Load()
			j.flow.serve()
			if n := j.out.Load() - from; n > turnBudget+pipeLen {
				t.Errorf("%d bytes in one turn", n)
			}
		}
	})
	wg.Wait()
	_ = j.server.CloseWrite()
	if err := j.end(t); err != nil {
		t.Error(err)
	}
}

// handLoop returns a loop that the test itself steps.
func handLoop(t testing.TB) *Loop {
	t.Helper()
	l, err := newLoop(new(shared))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.end)
	return l
}

// step does what run does once, waiting for events up to ms milliseconds.
func (l *Loop) step(ms int) {
	n, err := unix.EpollWait(l.epoll, l.events[:], ms)
	if err == nil {
		for i := range l.events[:n] {
			l.dispatch(&l.events[i])
		}
	}
	l.turn()
}

// socketPairs returns two pairs of bare sockets: client and a, b and server.
func socketPairs(t testing.TB, kind string) (client, a, b, server int) {
	t.Helper()
	c, ca := pairs[kind](t)
	cb, s := pairs[kind](t)
	fds := [4]int{}
	for i, c := range []conn{c, ca, cb, s} {
		fds[i] = takeFD(t, c)
	}
	return fds[0], fds[1], fds[2], fds[3]
}

func TestSpliceDoesNotAllocate(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, size := range []int{64, 100000} {
		for _, pipes := range []bool{true, false} {
			l := handLoop(t)
			client, a, b, server := socketPairs(t, "tcp")
			f := l.Splice(a, b, Splice{})
			f.dirs[sideA].copies = !pipes
			message, got := make([]byte, size), make([]byte, size)
			n := testing.AllocsPerRun(300, func() {
				if n, err := unix.Write(client, message); n != size || err != nil {
					t.Fatalf("wrote %d, %v", n, err)
				}
				for n := 0; n < size; {
					l.step(1)
					if k, errno := recv(int32(server), got[n:], 0); errno == 0 {
						n += k
					}
				}
			})
			if n != 0 && !raceEnabled {
				t.Errorf("%d bytes, pipes %v: %v allocations", size, pipes, n)
			}
			if size > messageLen && l.shared.spliced.Load() > 0 != pipes {
				t.Errorf("spliced %d", l.shared.spliced.Load())
			}
			_, _ = unix.Close(client), unix.Close(server)
		}
	}
}

// heap returns how many bytes are in use, after what pools and finalizers hold is
// gone too.
func heap() int64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// An idle flow costs less than 1 KiB of heap and no descriptor besides its sockets,
// also after it was busy.
func TestSpliceIdleCost(t *testing.T) {
	stacktest.NoLeaks(t)
	const flows = 400
	l := handLoop(t)
	var fds [flows][2]int
	var ours [flows][2]int
	for i := range fds {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		q, err2 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		fds[i], ours[i] = [2]int{p[0], q[1]}, [2]int{p[1], q[0]}
	}
	before := heap()
	for i := range ours {
		l.Splice(ours[i][0], ours[i][1], Splice{})
	}
	message := make([]byte, 1000)
	for range 3 {
		for i := range fds {
			_, _ = unix.Write(fds[i][0], message)
		}
		l.step(0)
		l.step(0)
		for i := range fds {
			_, _ = unix.Read(fds[i][1], message)
		}
	}
	if each := (heap() - before) / flows; each > 1024 && !raceEnabled {
		t.Errorf("%d bytes of heap a flow", each)
	} else {
		t.Logf("%d bytes of heap a flow", each)
	}
	if n := l.shared.pipes.Load(); n != 0 {
		t.Errorf("%d pipes", n)
	}
	for i := range fds {
		_, _ = unix.Close(fds[i][0]), unix.Close(fds[i][1])
	}
}
