// Package portdriver publishes a container's ports on the host.
//
// A Spec is what a user asks for, a Rule is a Spec in force with its listeners. The
// Registry, in the supervisor, owns every rule's life: it checks conflicts, binds
// the host's sockets and keeps them open, so that an engine that dies takes no port
// with it. Drivers, in the engine, accept on copies of those sockets and bring what
// comes to the container:
//
//	supervisor                     engine                        container's netns
//	Registry ── Rule, sockets ──▶ splice:   accept ─ socket made in the netns ─▶ server
//	                              netstack: datagrams, TCP ─ TAP ─────────────▶ server
//
// Both ask Addresses which address the container is to see, so that a client looks
// the same whichever way it came.
package portdriver
