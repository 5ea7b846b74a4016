// Package netnskeep keeps network namespaces without root, each under a name.
//
// A namespace lives as long as something refers to it (namespaces(7)): a process in
// it, a bind mount of it, or an open descriptor. A bind mount takes CAP_SYS_ADMIN in
// the mount namespace that everybody looks at, so an ordinary user's mount would be
// seen by nobody but the processes in a mount namespace of his own. What is left is
// a process: the keeper, which does nothing but be there. It holds both namespaces
// open under fixed descriptor numbers, and links lead to these:
//
//	$XDG_RUNTIME_DIR/postern/netns/NAME       -> /proc/PID/fd/100   the network
//	$XDG_RUNTIME_DIR/postern/netns/NAME.user  -> /proc/PID/fd/101   the user namespace that owns it
//
// Whoever opens such a path gets the namespace (proc_pid_fd(5)): setns(2), nsenter,
// runc, crun and postern attach --netns. A rootless runtime needs both paths, because
// only the owner of the user namespace may join the network.
//
// # A process id is only a number
//
// When a keeper has died and its number is another process's, /proc/PID/ns/net would
// lead to that one's network, most likely the host's. A descriptor 100 that is a
// network namespace no other program has: the path leads to nothing, or to a file
// that setns refuses. Only another keeper has one, and add removes dead names before
// it starts a keeper. What is killed is held by a pidfd first and then looked at.
//
// # Ends
//
// del ends the keeper; a namespace that somebody is in lives on without a name. The
// keeper is in a session of its own and outlives the shell that asked for it. Where
// systemd ends a user's processes at logout (logind.conf(5), KillUserProcesses), it
// goes then, with the directory.
package netnskeep
