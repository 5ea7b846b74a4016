// Package inspect finds out which user and network namespaces there are, who lives in
// them and how they are connected, with no rights but the caller's own.
//
// # The order of things
//
//	Collect   reads /proc, enters networks, reads state files:  facts
//	build     puts the facts together, pure:                     Report
//
// A Report is flat: namespaces refer to one another by their inode numbers, which are
// what readlink of /proc/PID/ns/net and lsns(8) show. Its JSON form is stable: fields
// are added, never changed.
//
// # Where namespaces are found
//
// In /proc/PID/ns of processes; behind mounts of nsfs in every mount namespace that we
// may look at (RootlessKit's detached network, ip netns); behind open descriptors (a
// network that nobody lives in); and by asking one for its owner or its parent
// (ioctl_nsfs(2)).
//
// # How interfaces are connected
//
// A veth interface names its peer by the peer's index and, if that is in another
// network, by an id of that network (IFLA_LINK, IFLA_LINK_NETNSID). Such an id means
// something in the network that says it only; the kernel tells which id it has for a
// network that we have open (RTM_GETNSID), so each one that we know is asked about.
//
// A TAP is served by whoever has /dev/net/tun open with its name (fdinfo's "iff").
// Names repeat: every network's is tap0. Which network it is in the descriptor knows
// (pidfd_getfd(2), TUNGETDEVNETNS); where we may not ask, the process's command line
// or, if only one network has an interface of that name, the name decides.
//
// # Trust
//
// Whatever processes say of themselves (command lines, names in state files) is cut to
// size and freed of control characters, and decides nothing but what is shown. Files
// are opened with their path taken inside the process's own root, and must be regular.
// Everything is bounded (limits.go); what was left out is counted.
package inspect
