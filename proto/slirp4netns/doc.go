// Package slirp4netns is the language of slirp4netns' API socket: what its clients
// ask and the exact bytes of the answers.
//
// A client connects to a unix stream socket, writes one JSON object and shuts its
// side down; it gets one JSON object and the end of the connection.
//
//	{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}
//	{"return":{"id":42}}
//
//	{"execute":"list_hostfwd"}
//	{"return":{"entries":[{"id":42,"proto":"tcp",…}]},"entries":[…]}
//
//	{"execute":"remove_hostfwd","arguments":{"id":42}}
//	{"return":{}}
//
//	{"error":{"desc":"bad request: add_hostfwd: bad arguments.proto"}}
//
// The manual (slirp4netns(1), "API socket") wraps a list's entries in "return"; the
// program itself has them at the top. Our answer has both.
//
// What is accepted is what version 1.2.0 was seen to accept, which is not quite JSON
// (RFC 8259). More lenient: a byte order mark, vertical tabs and form feeds are white
// space; a NUL ends the text; whatever follows the first value is ignored; numbers
// may be written 1. or -.5; text need not be UTF-8; in a string, what follows an
// escaped NUL does not count. More strict: a name may occur only once in an object
// and not contain NUL, surrogates must come in pairs, and 1e999 is no number.
//
// Numbers lose their fraction. An argument of the wrong type counts as absent, and so
// does one that is null.
//
// The differences from 1.2.0 are few: where that ends with SIGSEGV because the
// protocol is absent, the answer is ErrAddProto; ports outside 1 to 65535, which it
// takes for others, are refused; and of a single number written as only C knows them
// (0x1, or a lone minus) the answer may be the other of ErrJSON and ErrObject. Both
// are refusals.
package slirp4netns
