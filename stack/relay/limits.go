package relay

import "time"

// Bounds and sizes of the relay between kernel sockets. Those without another
// source were measured; BenchmarkBulk and BenchmarkRoundTrip measure them again.
const (
	// messageLen, see host.go, is also the size of a read of the kernel relay. What
	// fills it is taken for bulk data and spliced.

	// peekLen is how much is copied at a time where bulk data gets no pipe: about
	// what stays in a processor's second-level cache on its way through.
	peekLen = 256 << 10
	// pipeLen is what a pipe is made to hold. Half as much moves 3 % less, twice as
	// much (fs.pipe-max-size in pipe(7)) no more. A kernel that refuses it is asked
	// for half.
	pipeLen = 512 << 10
	// minPipeLen is the smallest pipe worth splicing through, the size that every
	// pipe has unless its user holds too many already (pipe(7)).
	minPipeLen = 64 << 10
	// turnBudget is how many bytes one direction of a flow may move before the
	// others have their turn.
	turnBudget = 1 << 20
	// clockAfter is how many bytes a direction brings, with no message the other way and
	// the loop not blocking meanwhile, before it is read by the clock: see clocked.
	clockAfter = 2 << 20
	// clockTick is how often it is read, and clockNap how long the loop sleeps before it
	// looks at the time, and for events, again. With the kernel's timer slack a nap is
	// some 100 µs, in which a stream of 20 Gbit/s brings 250 KB.
	clockTick = 100 * time.Microsecond
	clockNap  = 50 * time.Microsecond
	// clockMark is how much the kernel would have to hold before it woke us. Into the
	// container, one stream and eight, in Gbit/s (iperf3 -R -t 2, -P 8, MTU 65520, BBR
	// outside, two processors, medians of 5): on events 14.2, 14.8;
	// by the clock with 512 KiB 20.9, 22.7; 2 MiB 21.5, 24.5; 4 MiB 21.2, 24.8. The
	// kernel makes room for twice as much, within tcp_rmem (tcp(7)).
	clockMark = 2 << 20
	// clockIdle is how many ticks in a row may bring less than messageLen before a
	// direction goes back to events: 10 ms. A sender with eight streams that shares its
	// processor pauses for longer than one; with 10 ticks they were 20.9 instead of 22.8.
	clockIdle = 100
	// maxClocked is how many directions of a loop have had so much room made for them,
	// together 256 MiB.
	maxClocked = 64
	// busyLooks is how often a loop looks, without a nap, after as many events as
	// busyEvents have come at once: with that many flows at work the next event is near,
	// and being woken for it costs whoever causes it. 32 clients: 3 % more connections, 5 % more requests a second.
	busyLooks  = 50
	busyEvents = 4
	// callCost is what a system call counts for in that, so that small messages do
	// not make a turn long.
	callCost = 4 << 10

	// maxPipes is how many pipes all loops together hold: half of what one user may
	// have in all its processes before the kernel makes his new pipes tiny
	// (16,384 pages, fs.pipe-user-pages-soft in pipe(7); these have 128 each). A flow
	// needs one only while bytes are between its sockets; one without copies.
	maxPipes = 64
	// keepPipes is how many empty pipes a loop keeps, so that bulk flows do not make
	// and close one for every turn.
	keepPipes = 4
	// pipePause is how long no pipe is tried after the kernel refused one.
	pipePause = 100 * time.Millisecond
	// maxMessages is how many messages a loop holds that their receivers have not
	// taken yet (4 MiB). Beyond that bytes stay where they are until there is room.
	maxMessages = 256
	// keepMessages is how much memory for messages a loop keeps for the next ones.
	keepMessages = 16

	// maxEvents is how many events are taken from the kernel at once.
	maxEvents = 256
)

// Keepalive of both sockets of a flow, in seconds: a peer that vanished is found out
// after ten minutes. It is the same as for flows that go through netstack. The
// system's own figures (two hours, tcp(7)) would hold descriptors for half a day.
const (
	keepaliveIdle     = 60
	keepaliveInterval = 60
	keepaliveCount    = 9
)
