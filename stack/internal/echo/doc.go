// Package echo carries the container's pings to the outside and the replies
// back, by ping sockets of the host (icmp(7)).
//
// Every identifier that an address of the container uses gets one socket, whose
// identifier the kernel chooses; replies get the container's own back. A reply
// passes only if it comes from an address that was asked. Time exceeded and
// unreachable messages come out of the socket's error queue and are passed on,
// with the router that sent them as their source, and a hop limit below 64 is
// passed on less one, so that traceroute and mtr work.
//
// The host decides by the sysctl net.ipv4.ping_group_range who may have such
// sockets; the kernel's default is nobody. Then nothing is forged: requests are
// lost, a counter and one log line say why. It is asked again for every new
// identifier, so that a change of the sysctl needs no restart.
//
// The gateway's and the name server's own answers are not given here.
//
// Limits. There are at most flow.MaxEcho identifiers. The one not used for
// longest gives way if its last request is older than a second, which is when
// its reply has come or will not; otherwise the new one is refused. Identifiers
// end after Idle without a request.
package echo
