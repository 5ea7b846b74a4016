// Package hosterr turns what went wrong on the host's side into what the
// container is to be told: a TCP reset, an ICMP error, or nothing.
//
// The container's kernel turns the answer into the very errno that an ordinary
// process on the host would have seen, so that a refused port looks refused and
// an unreachable host looks unreachable. All functions are pure.
package hosterr

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/netplan"
)

// Outcome is the answer that an error calls for.
type Outcome struct {
	// Reset says that a TCP SYN is to be answered with RST rather than ICMP.
	Reset bool
	// Kind is the ICMP error to send, for TCP unless Reset. Zero means silence:
	// the container's own timers decide, as they do when a packet is lost.
	Kind icmp.Kind
}

// Silent reports whether nothing is to be sent.
func (o Outcome) Silent() bool { return !o.Reset && o.Kind == 0 }

// outcomes lists what is not silence. The meanings are those of connect(2),
// ip(7) and the kernel's icmp_err_convert table.
var outcomes = map[syscall.Errno]Outcome{
	syscall.ECONNREFUSED: {Reset: true, Kind: icmp.PortUnreachable},
	syscall.ECONNRESET:   {Reset: true, Kind: icmp.PortUnreachable},
	// Protocol unreachable (ICMP 3/2).
	syscall.ENOPROTOOPT: {Reset: true, Kind: icmp.PortUnreachable},

	syscall.EHOSTUNREACH: {Kind: icmp.HostUnreachable},
	syscall.EHOSTDOWN:    {Kind: icmp.HostUnreachable},
	syscall.ENONET:       {Kind: icmp.HostUnreachable},

	syscall.ENETUNREACH: {Kind: icmp.NetUnreachable},
	syscall.ENETDOWN:    {Kind: icmp.NetUnreachable},
	// Source route failed (ICMP 3/5).
	syscall.EOPNOTSUPP: {Kind: icmp.NetUnreachable},
	// No address to send from, or the host has no such family: no way there.
	syscall.EADDRNOTAVAIL: {Kind: icmp.NetUnreachable},
	syscall.EAFNOSUPPORT:  {Kind: icmp.NetUnreachable},
	syscall.ENODEV:        {Kind: icmp.NetUnreachable},
	// A prohibit route, a packet filter, or a destination that only privileged
	// sockets may use.
	syscall.EACCES: {Kind: icmp.AdminProhibited},
	syscall.EPERM:  {Kind: icmp.AdminProhibited},
	// A blackhole route says EINVAL (ip-route(8)); the kernel discards silently
	// when it forwards, so EINVAL stays out of this table.

	syscall.EMSGSIZE: {Kind: icmp.FragmentationNeeded},
}

// Of returns the answer to err, which may wrap an errno. Timeouts, exhausted
// resources and whatever else is not in the table are silence: they say nothing
// about the destination.
func Of(err error) Outcome {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return Outcome{}
	}
	return outcomes[errno]
}

// Reporter returns the address that an ICMP error to the container comes from.
// offender is who sent the error to the host, target the destination as the
// container knows it.
//
// A closed port is reported by the target. An exceeded hop limit is reported by
// the router that said so, which is what traceroute asks for. Everything else
// comes from the gateway, the container's own next hop: the offender may be the
// host itself, whose addresses are not the container's business.
func Reporter(kind icmp.Kind, offender, target netip.Addr, plan netplan.Plan) netip.Addr {
	fam := plan.Of(target)
	switch kind {
	case icmp.PortUnreachable:
		return target
	case icmp.TimeExceeded:
		offender = offender.Unmap()
		if offender.Is4() == target.Is4() && offender.IsGlobalUnicast() && !fam.Prefix.Contains(offender) {
			return offender
		}
	}
	return fam.Gateway
}
