package relay

// takeMessage sees to it that there is memory for the next read. It reports false
// when flows hold as many messages as they may.
func (l *Loop) takeMessage() bool {
	switch n := len(l.free); {
	case n > 0:
		l.msg, l.free[n-1] = l.free[n-1], nil
		l.free = l.free[:n-1]
	case l.held < maxMessages:
		l.msg = new(message)
	default:
		return false
	}
	return true
}

// releaseMessage takes back what a direction had pending.
func (l *Loop) releaseMessage(d *direction) {
	if d.msg != nil {
		l.held--
		if len(l.free) < keepMessages {
			l.free = append(l.free, d.msg)
		}
	}
	d.pending, d.msg = nil, nil
}

// release takes back everything that a direction holds.
func (l *Loop) release(d *direction) {
	l.releaseMessage(d)
	if d.pipe != nil {
		l.putPipe(d.pipe)
		d.pipe = nil
	}
}
