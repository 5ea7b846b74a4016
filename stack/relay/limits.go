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
	// bulkNaps is how often a loop that has spliced naps for bulkNap and looks for events
	// before it blocks: what comes meanwhile is moved in one piece, and nobody has to
	// wake us for it. With the kernel's timer slack a nap is some 100 µs, in which a
	// stream of 16 Gbit/s brings 200 KB. Into the container, one stream and eight, and
	// a published port, in Gbit/s (medians of 5 to 8): looking all the time 16.2, 15.6,
	// –; naps of 30 µs 17.1, 17.0, 16.9; of 50 –, 17.0, 17.2; of 100 16.8, 16.1, 17.3.
	bulkNaps = 10
	bulkNap  = 50 * time.Microsecond
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
