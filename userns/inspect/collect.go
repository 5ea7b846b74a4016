package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/join"
)

// Known is a network that the caller knows of: an instance of ours.
type Known struct {
	// Name is the instance's.
	Name string
	// PID is the supervisor's, Child its first process's, 0 for none.
	PID, Child int
	// NetNS is its network; it stays the caller's. nil if it cannot be opened.
	NetNS *os.File
	// Packet says that the engine has a packet socket instead of a TAP.
	Packet bool
	// Socket is its API's path.
	Socket string
}

// Options are what Collect cannot find out for itself. The zero Options are fine.
type Options struct {
	// RuntimeDir is XDG_RUNTIME_DIR's value.
	RuntimeDir string
	// Known are our instances.
	Known []Known
	// Ports asks a control socket, ours or RootlessKit's, for published ports. by is
	// whose it is. nil: ports are not asked for.
	Ports func(ctx context.Context, socket, by string) ([]Port, error)
}

// collector holds what has been found.
type collector struct {
	opts    Options
	self    *raw
	procs   map[int]*raw
	users   map[uint64]*space
	nets    map[uint64]*space
	tuns    []holder
	links   map[uint64][]Interface
	peers   map[uint64]map[int]uint64 // network -> id that it has for another -> that one
	ports   map[uint64][]Port
	names   map[uint64][]string
	known   map[int]Owner  // by the first process
	kits    map[int]string // RootlessKit's child -> its state directory
	helped  map[uint64]int // network -> supervisor of its packet socket
	packet  map[int]bool   // such supervisors
	omitted int
}

// Collect looks at everything that the caller may look at. It fails only without
// /proc: what else cannot be read is shown as such. It takes some milliseconds and
// one child process for each network.
func Collect(ctx context.Context, opts Options) (*Report, error) {
	c := &collector{
		opts: opts, procs: map[int]*raw{}, users: map[uint64]*space{}, nets: map[uint64]*space{},
		links: map[uint64][]Interface{}, peers: map[uint64]map[int]uint64{}, ports: map[uint64][]Port{},
		names: map[uint64][]string{}, known: map[int]Owner{}, kits: map[int]string{}, helped: map[uint64]int{}, packet: map[int]bool{},
	}
	defer c.close()
	if err := c.readProcesses(); err != nil {
		return nil, fmt.Errorf("list processes: %w (mount proc at /proc)", err)
	}
	if c.self = c.procs[os.Getpid()]; c.self == nil {
		return nil, fmt.Errorf("look at our own process %d in /proc: %w (mount proc at /proc)", os.Getpid(), unix.ESRCH)
	}
	c.findSpaces()
	c.findMounts()
	c.addKnown()
	c.readDescriptors()
	c.findOwners()
	c.readStates()
	recognise(c.procs, c.known)
	c.findKits()
	if err := c.enterAll(ctx); err != nil {
		return nil, err
	}
	c.askPorts(ctx)
	return c.build(), nil
}

func (c *collector) close() {
	for _, list := range []map[uint64]*space{c.users, c.nets} {
		for _, s := range list {
			if s.file != nil {
				s.file.Close()
			}
		}
	}
}

// addKnown notes the networks of our instances.
func (c *collector) addKnown() {
	for _, k := range c.opts.Known {
		if k.Child != 0 {
			c.known[k.Child] = Owner{Runtime: "postern", ID: k.Name, Name: k.Name}
		}
		if k.PID != 0 {
			c.known[k.PID] = Owner{Runtime: "postern", ID: k.Name, Name: k.Name, Role: "supervisor"}
		}
		if k.NetNS == nil {
			continue
		}
		id, err := inode(k.NetNS)
		if err != nil {
			continue
		}
		c.add(c.nets, id, 0, openPlain(enterable(k.NetNS)))
		c.names[id] = append(c.names[id], "instance "+k.Name)
		if k.Packet {
			c.helped[id], c.packet[k.PID] = k.PID, true
		}
	}
}

// enterAll reads the interfaces of every network, ours without entering it.
func (c *collector) enterAll(ctx context.Context) error {
	for _, id := range sortedKeys(c.nets) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("look at networks: %w", err)
		}
		s := c.nets[id]
		if s.file == nil || s.err != nil && id != c.self.ns.Net {
			continue
		}
		route, done, err := c.open(id, s)
		if err == nil {
			err = c.enter(id, route)
			done()
		}
		s.err = c.explain(s, err)
	}
	return nil
}

// explain says in a few words why a network may not be entered.
func (c *collector) explain(s *space, err error) error {
	if !errors.Is(err, join.ErrNotOwner) {
		return err
	}
	if u := c.users[s.user]; u != nil && u.owner != nil {
		return fmt.Errorf("its user namespace is uid %d's, you are uid %d", *u.owner, c.self.uid)
	}
	return join.ErrNotOwner
}

// open gets a netlink socket of a network.
func (c *collector) open(id uint64, s *space) (route *os.File, done func(), err error) {
	if id == c.self.ns.Net {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return nil, nil, fmt.Errorf("open a netlink socket: %w", err)
		}
		route = os.NewFile(uintptr(fd), "route")
		return route, func() { route.Close() }, nil
	}
	target, err := join.OpenPaths(enterable(s.file), "")
	if err != nil {
		return nil, nil, err
	}
	defer target.Close()
	sockets, err := target.Open(join.Request{})
	if err != nil {
		return nil, nil, err
	}
	return sockets.Route, func() { sockets.Close() }, nil
}

// enter reads the interfaces of one network, and finds out which networks the ids
// mean that they have for others.
func (c *collector) enter(id uint64, route *os.File) error {
	links, omitted, err := dumpLinks(route)
	c.omitted += omitted
	if err != nil {
		return err
	}
	c.links[id] = links
	wanted := make(map[int]bool)
	for _, l := range links {
		if l.nsid >= 0 {
			wanted[l.nsid] = true
		}
	}
	c.peers[id] = make(map[int]uint64)
	for _, other := range sortedKeys(c.nets) {
		if len(wanted) == 0 {
			break
		}
		if f := c.nets[other].file; f != nil {
			if nsid, err := nsidOf(route, f); err == nil && wanted[nsid] {
				c.peers[id][nsid] = other
				delete(wanted, nsid)
			}
		}
	}
	return nil
}
