// Package sockdiag watches which sockets of a network namespace wait for clients,
// through sock_diag sockets that were made in there (sock_diag(7)).
//
//	Dump     who listens now: TCP listeners, bound UDP sockets without a peer
//	Watcher  tells whenever that has changed
//
// # Births and deaths
//
// The kernel tells of the death of every socket (SKNLGRP_INET_TCP_DESTROY and its
// kin, "ss -E"), and it tells anybody. Of a birth it tells nobody without
// privileges: inet_sock_set_state is a tracepoint (CAP_PERFMON in the first user
// namespace), cgroup and socket-lookup programs are BPF (CAP_BPF there), and nothing
// in netlink, inotify or /proc announces a bind or a listen. So births are found by
// asking again: a quarter of a second after something has changed, since servers
// open their ports one after the other, and up to a second apart when nothing does.
// One dump of TCP listeners looks at those only.
//
// A death is told when the last process has closed the socket. Every connection that
// ends is told too; a filter in the kernel (socket(7), SO_ATTACH_FILTER) keeps those
// from us, so that a busy server does not wake us, unless it resets its clients
// (SO_LINGER of 0), which makes the kernel forget the peer; dumps keep a distance
// then. What was lost because we were slow (ENOBUFS) is made up for by a dump.
package sockdiag
