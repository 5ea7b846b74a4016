// Package auto publishes what a container listens on, as it comes and goes
// (--publish-auto).
//
//	sockdiag.Watcher ── sockets ──▶ Follower ── AddAuto, Remove ──▶ Registry
//	                                   │
//	                        Policy.Desired: sockets, rules → specs
//
// Policy decides, without looking at anything but its arguments. Follower makes the
// registry's rules what Desired says: a rule comes with its listener and goes with
// it. What cannot be published, because somebody on the host has the port or
// because ports below 1024 are not ours to bind, is said once and tried again, less
// and less often. A rule that the user removes stays removed until its listener has
// gone.
//
// Published is on the host's 127.0.0.1 and ::1 only, under the same number:
//
//	container listens on              clients are taken to
//	0.0.0.0, ::, its own address      its own address
//	127.0.0.1 or ::1, or both         its loopback address, of their family with both
//	any other address                 not published: bridges of nested containers,
//	                                  stub resolvers
//
// A UDP socket does not listen: one with a port in the ephemeral range is taken for
// a client's.
package auto
