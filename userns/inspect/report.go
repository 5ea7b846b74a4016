package inspect

import "net/netip"

// Version is the version of Report's JSON form.
const Version = 1

// Report is what there is to see. Lists are sorted by number.
type Report struct {
	Version int    `json:"version"`
	UID     uint32 `json:"uid"` // the caller's
	// Self are the caller's own namespaces.
	Self       IDs       `json:"self"`
	Users      []User    `json:"user_namespaces"`
	Networks   []Network `json:"networks"`
	Processes  []Process `json:"processes"`
	Unreadable int       `json:"unreadable_processes"` // processes whose namespaces we may not see
	Omitted    int       `json:"omitted"`              // things left out because a bound was reached
}

// IDs are the inode numbers of a process's namespaces; 0 is unknown.
type IDs struct {
	User  uint64 `json:"user,omitempty"`
	Net   uint64 `json:"net,omitempty"`
	Mount uint64 `json:"mnt,omitempty"`
	PID   uint64 `json:"pid,omitempty"`
}

// User is a user namespace.
type User struct {
	ID uint64 `json:"id"`
	// Parent is 0 when it is unknown: ours has one that we may not see.
	Parent uint64 `json:"parent,omitempty"`
	// Owner is the uid of who made it, as we see it; nil when it may not be read.
	Owner *uint32 `json:"owner_uid,omitempty"`
	// UIDMap and GIDMap are its maps' lines, "inside outside count".
	UIDMap []string `json:"uid_map,omitempty"`
	GIDMap []string `json:"gid_map,omitempty"`
	// Problem says what may not be read.
	Problem string `json:"problem,omitempty"`
}

// Network is a network namespace.
type Network struct {
	ID uint64 `json:"id"`
	// User is the user namespace that owns it, 0 if unknown.
	User uint64 `json:"user,omitempty"`
	// Names say whose it is: "instance amber-gate", "nerdctl container web".
	Names []string `json:"names,omitempty"`
	// Places are where else it is held than by processes in it.
	Places     []Place     `json:"places,omitempty"`
	Interfaces []Interface `json:"interfaces"`
	Ports      []Port      `json:"ports,omitempty"`
	// Problem says what may not be read.
	Problem string `json:"problem,omitempty"`
}

// Place is a path that leads to a namespace, in the mount namespace of a process, or
// a descriptor of that process.
type Place struct {
	PID  int    `json:"pid"`
	Path string `json:"path,omitempty"`
	FD   int    `json:"fd,omitempty"`
}

// Interface is an interface of a network.
type Interface struct {
	Index int    `json:"index"`
	Name  string `json:"name"`
	// Kind is the driver's name: veth, bridge, tun …; empty for hardware and lo.
	Kind      string         `json:"kind,omitempty"`
	MTU       int            `json:"mtu"`
	MAC       string         `json:"mac,omitempty"`
	Up        bool           `json:"up"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Bridge is the interface that this one is a port of.
	Bridge string `json:"bridge,omitempty"`
	// Peer is the other end, or what the interface is stacked on.
	Peer *Peer `json:"peer,omitempty"`
	// Engine is who moves its packets.
	Engine *Engine `json:"engine,omitempty"`

	master, link, nsid int // as the kernel says; nsid -1: none
}

// Peer is the other end of a veth pair, or the lower interface of a stacked one.
type Peer struct {
	// Net is its network, 0 if that is not one that we know.
	Net   uint64 `json:"net,omitempty"`
	Index int    `json:"index"`
	Name  string `json:"name,omitempty"`
}

// Engine is a process that serves an interface.
type Engine struct {
	// Kind is "postern", "slirp4netns", "pasta" or the program's name.
	Kind string `json:"kind"`
	PID  int    `json:"pid"`
	// Net is the network that the process itself is in, 0 if unknown.
	Net uint64 `json:"net,omitempty"`
}

// Port is a published port, or a range of them.
type Port struct {
	// Rule is the whole in one line: "127.0.0.1:8080 -> 80/tcp".
	Rule  string `json:"rule"`
	Proto string `json:"proto"`
	// Listen are the sockets on the host; Count is how many ports in a row each has.
	Listen []netip.AddrPort `json:"listen,omitempty"`
	Count  int              `json:"count"`
	// TargetAddr is left out if it is the network's own address.
	TargetAddr netip.Addr `json:"target_addr,omitzero"`
	TargetPort uint16     `json:"target_port,omitempty"`
	// By is who publishes it: postern or rootlesskit.
	By string `json:"by"`
}

// Process is a process in a namespace that is shown.
type Process struct {
	PID    int    `json:"pid"`
	Parent int    `json:"parent"`
	UID    uint32 `json:"uid"`
	// Inner is its number in its own PID namespace, 0 if unknown.
	Inner   int    `json:"inner_pid,omitempty"`
	Command string `json:"command"`
	NS      IDs    `json:"namespaces"`
	// Owner is the container or network that it belongs to, nil if none is known.
	Owner *Owner `json:"owner,omitempty"`
	// Problem says what may not be read.
	Problem string `json:"problem,omitempty"`
}

// Owner is a container, or a part of the machinery.
type Owner struct {
	// Runtime is runc, crun, podman, nerdctl, containerd, docker, rootlesskit or postern.
	Runtime string `json:"runtime"`
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	// Role tells machinery from inhabitants: "" is a container's process.
	Role string `json:"role,omitempty"`
}

// String is one phrase: "nerdctl container web".
func (o Owner) String() string {
	name := o.Name
	if name == "" {
		name = o.ID
		if len(name) == 64 { // a digest: what people type is its beginning
			name = name[:12]
		}
	}
	switch {
	case o.Role != "" && name != "":
		return o.Runtime + " " + o.Role + " " + name
	case o.Role != "":
		return o.Runtime + " " + o.Role
	case o.Runtime == "postern":
		return "instance " + name
	}
	return o.Runtime + " container " + name
}

// User returns a user namespace by its number, nil if it is not in the report.
func (r *Report) User(id uint64) *User {
	return find(r.Users, func(u *User) bool { return u.ID == id })
}

// Network returns a network by its number, nil if it is not in the report.
func (r *Report) Network(id uint64) *Network {
	return find(r.Networks, func(n *Network) bool { return n.ID == id })
}

// Process returns a process by its number, nil if it is not in the report.
func (r *Report) Process(pid int) *Process {
	return find(r.Processes, func(p *Process) bool { return p.PID == pid })
}

func find[T any](list []T, is func(*T) bool) *T {
	for i := range list {
		if is(&list[i]) {
			return &list[i]
		}
	}
	return nil
}
