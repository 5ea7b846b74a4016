package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// pipe is what spliced bytes pass through. A direction has one only while there are
// bytes in it.
type pipe struct {
	r, w int32
	size int // what it holds
	n    int // bytes in it
}

// takePipe returns an empty pipe, or nil if there is none to be had now.
func (l *Loop) takePipe() *pipe {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p
	}
	if l.shared.pipes.Add(1) > maxPipes {
		l.shared.pipes.Add(-1)
		l.shared.refused.Add(1)
		return nil
	}
	if p := l.makePipe(); p != nil {
		return p
	}
	l.shared.pipes.Add(-1)
	l.shared.refused.Add(1)
	return nil
}

// makePipe makes a pipe, nil if the kernel has none worth having: descriptors ran
// out, or the user has so many that his new ones are tiny.
func (l *Loop) makePipe() *pipe {
	now := time.Now()
	if now.Before(l.paused) {
		return nil
	}
	var fds [2]int
	if err := pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		l.paused = now.Add(pipePause)
		return nil
	}
	p := &pipe{r: int32(fds[0]), w: int32(fds[1])}
	for want := pipeLen; want >= minPipeLen; want /= 2 {
		if n, err := setPipeSize(fds[0], want); err == nil {
			p.size = n
			return p
		}
	}
	l.paused = now.Add(pipePause)
	_, _ = unix.Close(fds[0]), unix.Close(fds[1])
	return nil
}

// The kernel, for tests that have it refuse.
var (
	pipe2       = unix.Pipe2
	setPipeSize = func(fd, n int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, n) }
)

// putPipe takes a pipe back. One with bytes left in it is no good to another flow.
func (l *Loop) putPipe(p *pipe) {
	if p.n > 0 || len(l.pipes) >= keepPipes {
		l.destroy(p)
		return
	}
	l.pipes = append(l.pipes, p)
}

func (l *Loop) destroy(p *pipe) {
	_, _ = unix.Close(int(p.r)), unix.Close(int(p.w))
	l.shared.pipes.Add(-1)
}
