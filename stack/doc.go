// Package stack is the engine: it turns the frames of a device in a container's
// network namespace into sockets of the host, and back.
//
//	       tap.Device
//	           │ frames with virtio header
//	       link.Endpoint ──── service: ARP, NDP, DHCP, echo to the gateway
//	           │     └ SYN ── guard ── express.Out ── sockets of the container's netns
//	  ┌────────┼─────────┐
//	UDP, ICMP  │ TCP, fragments
//	  │     netstack (gVisor), one interface, promiscuous
//	  │        │ SYN
//	  │   tcpout.Out ── guard ── flow table ── host dial ── relay
//	  │        └ port 53 of the resolver's address ┐
//	  │   tcpin.In ── DialTCP for published ports  │
//	  ├── what SetPublished set                    │
//	  ├── udpout.Table ── guard ── host sockets    │
//	  ├── echo.Table ──── guard ── ping sockets    │
//	  └── resolve.Forwarder ◀──────────────────────┘
//
// New assembles the parts, Run drives them until its context ends or the device
// dies, Close takes everything down and waits for it. An Engine opens no file
// and knows no path: device, addresses and name servers are given to it.
//
// One goroutine reads frames. What it calls must not block, so every part hands
// work that can take time to goroutines of its own, whose number the flow table
// bounds. netstack adds one goroutine a processor for TCP; a TCP flow has two.
//
// A TCP flow has one of two paths. The universal one is drawn above: every byte goes
// through the device and netstack. With Config.Express the bytes of flows that a socket
// of the container's own network namespace opened stay in the kernel; see the package
// express. Both are entries of the same flow table, under the same guard and limits.
package stack
