package datagram

import "sync"

// pump passes on what one or more goroutines receive, from a goroutine of its own.
// While one batch is passed on the next one fills, so that datagrams join trains for
// as long as the way is busy, and none waits when it is not.
type pump struct {
	emit func(t *train)
	done chan struct{} // closed by run when it ends

	mu     sync.Mutex // guards the fields below
	work   sync.Cond  // filling is no longer empty, or closed
	room   sync.Cond  // filling has room again, or closed
	closed bool
	// filling collects; spare is the other batch, nil while it is passed on.
	filling, spare *batch
}

// newPump starts a pump. emit must not keep the train.
func newPump(emit func(t *train)) *pump {
	p := &pump{emit: emit, done: make(chan struct{}), filling: new(batch), spare: new(batch)}
	p.work.L, p.room.L = &p.mu, &p.mu
	go p.run()
	return p
}

// add takes what one receive brought for a flow, and copies it. It waits while
// nothing can be taken.
func (p *pump) add(f *Flow, payload []byte, segment int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && !p.filling.add(f, payload, segment) {
		p.room.Wait()
	}
	if p.filling.n == 1 {
		p.work.Signal()
	}
}

func (p *pump) run() {
	defer close(p.done)
	for {
		b := p.next()
		if b == nil {
			return
		}
		for i := range b.trains[:b.n] {
			p.emit(&b.trains[i])
		}
		b.reset()
		p.mu.Lock()
		p.spare = b
		p.mu.Unlock()
	}
}

// next waits for a batch to pass on, and returns nil when the pump is closed.
func (p *pump) next() *batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && p.filling.n == 0 {
		p.work.Wait()
	}
	if p.closed {
		return nil
	}
	b := p.filling
	p.filling, p.spare = p.spare, nil
	p.room.Broadcast()
	return b
}

// close ends the goroutine and waits for it. What was not passed on is lost. It may
// be called again.
func (p *pump) close() {
	p.mu.Lock()
	p.closed = true
	p.work.Broadcast()
	p.room.Broadcast()
	p.mu.Unlock()
	<-p.done
}
