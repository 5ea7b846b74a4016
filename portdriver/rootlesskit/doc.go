// Package rootlesskit lets RootlessKit, and whatever embeds it, publish ports with
// our splice driver: it has RootlessKit's interfaces on the outside and a registry
// with drivers behind them.
//
//	opt.PortDriver = rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: dir}) // parent.Opt
//	opt.PortDriver = rootlesskit.NewChildDriver(rootlesskit.Config{})               // child.Opt
//
// # Who does what
//
// RootlessKit runs a parent on the host and a child in the container's namespaces.
// The child driver does one thing: it sends the parent descriptors of its user and
// network namespace, or of the detached network namespace instead of the latter.
// From then on the parent enters the namespaces by itself (package join) whenever the
// stock of sockets runs low; nothing runs in the child for a connection. The socket
// between them lies in the state directory, and only our own user may use it.
//
//	parent: Registry ─▶ splice, udp ─ Take ─ stock ◀─ sockets made in the netns ─ join
//	                                                        ▲
//	child:  namespace descriptors, once ────────────────────┘
//
// # What RootlessKit means
//
// A spec without a parent address takes clients on every address of the host, and one
// without a child address leads to the address that the network driver has given to
// the child, or to the child's 127.0.0.1 if it has given none. RootlessKit knows the
// child's IPv4 address only.
//
// A client of a port on which nothing listens yet is given a moment before it is
// reset, as with the builtin driver.
//
// TCP servers see the real client. UDP servers see their own address, as with
// RootlessKit's builtin driver, and so 127.0.0.1 if they are reached there.
//
// # Ends
//
// RootlessKit tells both drivers to quit by a message that somebody has to receive,
// and then waits for them. So neither returns before, once RootlessKit counts on it:
// the child driver keeps its error until then.
package rootlesskit
