package datagram

// victim returns the flow that gives way to a new one. The
// table has flows, and t.mu is held.
//
// It is a flow of the client that has the most of one kind: the most flows without
// a reply if those are at least as many as anyone's with, otherwise the most that
// had one. Of that client the flow without a reply goes first, and the one not used
// for longest. So a client that runs through its ports replaces its own flows,
// whether the container answers or not.
//
// Datagrams with forged sources look like as many clients with one flow each, whom
// nobody's flows would be few against. Flows without a reply may therefore be no
// more than a quarter of a full table; beyond that they replace each other.
func (t *table) victim() *Flow {
	silent, busy := t.crowds[unreplied].first(), t.crowds[replied].first()
	switch {
	case busy == nil:
		return silent.shares[unreplied].oldest()
	case silent != nil && (t.crowds[unreplied].top >= t.crowds[replied].top || t.crowds[unreplied].total >= t.limit/4):
		return silent.shares[unreplied].oldest()
	}
	if f := busy.shares[unreplied].oldest(); f != nil {
		return f
	}
	return busy.shares[replied].oldest()
}
