// Package dns reads and writes the bytes of name service: queries, the few
// responses that an engine makes itself, the framing over TCP, and resolv.conf.
//
// Both directions cross a trust boundary. Queries come from a container, so
// ParseQuery walks the whole message and refuses what is not one well-formed
// question; a refusal says which RCODE to send, or that nothing may be sent.
// Responses come from the network, so Matches decides whether one belongs to a
// query. Nothing here follows a compression pointer, so no message can make it
// loop, and nothing is re-encoded: a message that passes through keeps every
// byte, whatever record types and EDNS options it carries.
//
// The message format is that of RFC 1035 section 4, EDNS that of RFC 6891,
// the framing that of RFC 7766 section 8, the file that of resolv.conf(5).
package dns
