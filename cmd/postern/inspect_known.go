package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
	wire "github.com/postern-net/postern/proto/api"
	"github.com/postern-net/postern/userns/inspect"
	"github.com/postern-net/postern/userns/join"
)

// knownNetworks opens the networks of the instances. One that cannot be opened is
// known by name only.
func knownNetworks(root string) ([]inspect.Known, error) {
	infos, err := instance.List(root)
	if err != nil {
		return nil, err
	}
	var list []inspect.Known
	for _, i := range infos {
		k := inspect.Known{Name: i.Name, PID: i.PID, Packet: i.Endpoint == "packet", Socket: filepath.Join(root, i.Name, "api.sock")}
		if i.CheckChild() == nil {
			k.Child = i.ChildPID
		}
		if target, err := openShown(i); err == nil {
			k.NetNS, _ = duplicate(target.NetNS())
			target.Close()
		}
		list = append(list, k)
	}
	return list, nil
}

// openShown opens an instance's network also where it is attached by path and has no
// process: by the path that it was given.
func openShown(i instance.Info) (*join.Target, error) {
	const word = 2 // attach --netns PATH
	if i.ChildPID == 0 && len(i.Command) > word && i.Command[word-1] == "--netns" {
		return join.OpenPaths(i.Command[word], "")
	}
	return openInstance(i)
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func closeKnown(list []inspect.Known) {
	for _, k := range list {
		if k.NetNS != nil {
			k.NetNS.Close()
		}
	}
}

// networkOf is the inode number of an instance's network.
func networkOf(k inspect.Known) (uint64, error) {
	if k.NetNS == nil {
		return 0, fmt.Errorf("inspect instance %s: its network may not be opened", k.Name)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(k.NetNS.Fd()), &st); err != nil {
		return 0, fmt.Errorf("inspect instance %s: %w", k.Name, err)
	}
	return st.Ino, nil
}

// portsWithin bounds the time for one control socket.
const portsWithin = 2 * time.Second

// askPorts asks a control socket for published ports.
func askPorts(ctx context.Context, socket, by string) ([]inspect.Port, error) {
	ctx, cancel := context.WithTimeout(ctx, portsWithin)
	defer cancel()
	if by != "postern" {
		return askRootlessKit(ctx, socket, by)
	}
	client := apisock.NewClient(socket)
	defer client.Close()
	rules, err := client.Ports(ctx)
	if err != nil {
		return nil, err
	}
	var list []inspect.Port
	for _, r := range rules {
		list = append(list, inspect.Port{Rule: portText(r), Proto: r.Proto, Listen: r.Bound, Count: r.Count,
			TargetAddr: r.ContainerAddr, TargetPort: r.ContainerPort, By: by})
	}
	return list, nil
}

// askRootlessKit asks RootlessKit's API (GET /v1/ports).
func askRootlessKit(ctx context.Context, socket, by string) ([]inspect.Port, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, "GET", "http://rootlesskit/v1/ports", nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", socket, err)
	}
	defer response.Body.Close()
	var rules []rootlessKitPort
	if err := wire.Decode(response.Body, 1<<20, &rules); err != nil { // null when there are none
		return nil, fmt.Errorf("answer of %s: %w", socket, err)
	}
	var list []inspect.Port
	for _, r := range rules {
		list = append(list, r.port(by))
	}
	return list, nil
}

// rootlessKitPort is RootlessKit's PortStatus.
type rootlessKitPort struct {
	Spec struct {
		Proto      string `json:"proto"`
		ParentIP   string `json:"parentIP"`
		ParentPort uint16 `json:"parentPort"`
		ChildIP    string `json:"childIP"`
		ChildPort  uint16 `json:"childPort"`
	} `json:"spec"`
}

func (r rootlessKitPort) port(by string) inspect.Port {
	s := r.Spec
	p := inspect.Port{Proto: inspect.Clean(s.Proto, 8), Count: 1, TargetPort: s.ChildPort, By: by}
	from, to := ":"+strconv.Itoa(int(s.ParentPort)), strconv.Itoa(int(s.ChildPort))
	if addr, err := netip.ParseAddr(s.ParentIP); err == nil {
		p.Listen = []netip.AddrPort{netip.AddrPortFrom(addr, s.ParentPort)}
		from = p.Listen[0].String()
	}
	if addr, err := netip.ParseAddr(s.ChildIP); err == nil {
		p.TargetAddr = addr
		to = netip.AddrPortFrom(addr, s.ChildPort).String()
	}
	p.Rule = from + arrow + to + "/" + p.Proto
	return p
}
