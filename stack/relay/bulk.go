package relay

import "golang.org/x/sys/unix"

// moveBulk fills a pipe from the source and drains it. A pipe is filled only when it
// is empty, so EAGAIN never means that it was full; whatever else stops splice(2), a
// plain read finds out.
func (f *Flow) moveBulk(i, most int) int {
	l, d, src := f.loop, &f.dirs[i], &f.sides[i]
	if d.copies {
		return f.movePeeked(i)
	}
	p := l.takePipe()
	if p == nil {
		return f.movePeeked(i)
	}
	n, errno := splice(src.fd, p.w, min(most, p.size))
	if errno == 0 && n > 0 {
		p.n, d.pipe = n, p
		d.took(n)
		return f.drain(i)
	}
	l.putPipe(p)
	d.bulk = false
	switch errno {
	case 0, unix.EAGAIN:
		return 0
	case unix.EINVAL, unix.ENOSYS, unix.EPERM: // not for this kind of socket, or forbidden
		d.copies = true
		return 0
	}
	f.fail(i, "splice", errno)
	return stop
}

// drain sends what is in the pipe.
func (f *Flow) drain(i int) int {
	d, dst := &f.dirs[i], &f.sides[1-i]
	if !dst.writable {
		return stop
	}
	n, errno := splice(d.pipe.r, dst.fd, d.pipe.n)
	if errno != 0 {
		return f.unsent(i, "splice", errno)
	}
	d.add(n)
	f.loop.shared.spliced.Add(uint64(n))
	f.streamed(i, n)
	d.pipe.n -= n
	if d.pipe.n == 0 {
		f.loop.putPipe(d.pipe)
		d.pipe = nil
	}
	return n
}
