// Package stock keeps the engine's supply of sockets that were made in the
// container's network namespace.
//
// A published connection needs a socket there, transparent and marked, and the
// engine can make none: whoever makes it has to enter the namespace. So sockets are
// made ahead, many at a time. Take hands one out and never waits. What runs low is
// ordered; the order function passes that on to the supervisor, whose answer comes
// by Deliver, whole or in parts:
//
//	driver ◀─ Take ─ shelf ◀─ Deliver ─ inspected sockets ◀── short-lived child in the netns
//	                   └─ below the low-water mark: order ──▶ supervisor ──┘
//
// There is one shelf for each kind of socket, and never more than one order under
// way for it. An order that does not come in time is given up and made anew: the
// supervisor may have failed. It is smaller then: descriptors may have run out.
//
// Each shelf has a level to which it is filled. It starts small, doubles while the
// shelf is emptied quickly, and halves while little is taken; what is then too much
// is closed. A kind that no port needs has none.
//
// A TCP socket that has served its connection may come back, with nothing left in it
// (Keep), and be given out again (Reuse). These lie beside the fresh ones, the last one
// on top, and neither count for the level nor cause orders. There are at most half as
// many as the highest level, and those that nobody has needed for a while are closed.
//
// The sockets come from a place where the container's root is master. Each is
// inspected, and one that is not what was ordered is closed and counted. What the
// container's root does to a sound socket later only harms connections to itself.
package stock
