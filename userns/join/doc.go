// Package join enters namespaces that exist already: to make sockets and an
// interface in them, or to run a program there.
//
// No thread of ours ever enters anything. A Go process cannot join a user
// namespace (setns(2): EINVAL for a process with more than one thread), so a
// forked child does it (package rawfork), opens what is wanted in there, and sends
// the descriptors back. What a descriptor belongs to is decided when it is made: a
// netlink socket made in a network namespace configures that namespace from
// anywhere, as long as its user is the owner of the user namespace above it
// (user_namespaces(7): the owner has all capabilities in there).
//
//	OpenPID, OpenPaths   hold the namespaces: a Target
//	Target.Open          TAP, netlink, sock_diag and packet sockets: Sockets
//	Target.Start         a program of ours in the namespaces: a Process
//	Target.SendSockets   clients' sockets of published ports, to another process
//	Target.Make          plain sockets, for the caller to make something of
//	Target.Listen        a listening socket for the container's own processes
//	DescribeTAP          a TAP that somebody else has made and handed over
//
// # The right process
//
// A process id is only a number that may be reused. OpenPID opens a pidfd first,
// then the files below /proc/PID, then asks the pidfd whether the process still
// lives: if so, the number was its own all the while. Nothing looks at the number
// afterwards.
//
// # The TAP
//
// /dev/net/tun is opened with the host's file tree but in the container's network
// namespace, to which the descriptor then belongs. The container needs no device
// file.
//
// # The packet socket
//
// Where there is no /dev/net/tun for us, the container's interface is one end of
// a veth pair. Its other end lives in a second network namespace of the same user
// namespace, that nobody lives in: the child makes it (unshare), and makes an
// AF_PACKET socket in it, which together with FarNetNS keeps it in being.
//
// # Sockets of published ports
//
// A client of a published port is taken to the container by a socket made in the
// container's network namespace. Made ready (IP_TRANSPARENT, SO_MARK), it can be
// bound to the client's own address and connected by a process without any rights
// in there, so they are made in advance: a child makes some hundred in about two
// milliseconds, sends them to the engine and ends. Nothing of ours stays in the
// container, and no connection waits for a child.
//
// PreparePublishing has the answers find their way back. The server's socket takes
// the mark over from the SYN, a rule sends what is marked to a table in which every
// address is local, and so the answer to a client far away goes through the loopback
// interface to the socket that is bound to its address. A UDP server's socket takes
// no mark over. If it is bound to 127.0.0.1 or ::1, a rule for that source does the
// same. If it is bound to no address, the kernel chooses the answer's source by the
// route to the client, and the answer leaves by the container's interface.
//
// # Whom we enter
//
// The inhabitants are not trusted. The child makes itself undumpable before it
// joins, so that a process in there cannot trace it and take the copies of our
// descriptors; and the parent waits only so long, since a process in there may
// stop it.
package join
