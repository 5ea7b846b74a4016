// Package resolve is the name service of the virtual network: a forwarder that
// follows the host.
//
// # Path of a query
//
// A query arrives as a datagram (Query) or on a stream (ServeTCP), is checked by
// dns.ParseQuery and then answered in one of three ways: here, if it is
// malformed, asks for a zone transfer, or names one of the engine's own names;
// with SERVFAIL, if the host has no name servers; otherwise by the host's name
// servers, over the transport that the client chose. Messages that pass through
// keep every byte except the identifier. There is no cache, so nothing can be
// stale or poisoned, and there is no public server to fall back to, so no name
// leaks to anyone whom the host does not ask.
//
// # Which server is asked
//
// A lookup asks the servers in the host's order. The next one is asked at once
// when a server cannot be reached or answers SERVFAIL, REFUSED or NOTIMP (as the
// resolver of glibc does), and after Config.Stagger while it is silent, without
// giving up on it. Each try ends after Config.TryTimeout. When all servers have
// been tried without an answer, the round starts again, until
// Config.TotalTimeout.
//
// The first answer goes to the client, with two exceptions. A failure is kept
// and sent only if no server does better, and then as it is: SERVFAIL never
// becomes NXDOMAIN. And "no such name" from a later server waits for a moment
// (negativeHold) while an earlier server is still being asked, because behind a
// VPN only the first server may know the name.
//
// A server that timed out, or was overtaken a few times in a row, goes to the
// back of the order for a while (penalty). Its next answer, or a new list of
// servers, restores its place.
//
// When the host's servers change, lookups under way ask the new ones at once.
// What the old ones have been asked stays valid: they may answer first.
//
// # What is accepted
//
// Every try has its own connected socket, so the kernel picks a random port and
// drops what comes from other addresses, and its own random identifier. A
// datagram that does not match is ignored and the try goes on, so that forged
// answers neither poison a lookup nor end it (RFC 5452, TuDoor).
//
// # Limits and life
//
// flow.MaxDNS queries are under way at once: datagrams above are dropped, streams
// wait. flow.MaxDNSConns streams are open, each with its own bound on pipelined
// queries. Close ends all lookups and streams and waits for every goroutine.
package resolve
