// Package rootlesskit gives RootlessKit, and whatever embeds it, our network and our way
// to publish ports: it has RootlessKit's interfaces on the outside, and an instance
// of postern or a registry with drivers behind them.
//
//	opt.NetworkDriver, err = rootlesskit.NewParentNetwork(rootlesskit.NetworkConfig{}) // parent.Opt
//	opt.PortDriver = rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: dir})
//
//	opt.NetworkDriver = rootlesskit.NewChildNetwork() // child.Opt
//	opt.PortDriver = rootlesskit.NewChildDriver(rootlesskit.Config{})
//
// Either serves without the other.
//
// # The network
//
// The parent's network driver starts the program postern (attach) for the child, with its
// directory in RootlessKit's, and waits until the network works. The engine is thus
// confined, and replaced when it dies, as everywhere; the program that embeds RootlessKit moves no
// packet. The interface has its addresses when the child hears of it. postern ends
// when the driver is told to clean up, or when the program is gone.
//
// # Who publishes
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
//
// A state directory is used again after a crash if the program calls
// parent.InitStateDir before parent.Parent, as RootlessKit's own main does.
package rootlesskit
