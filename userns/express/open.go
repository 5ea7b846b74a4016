package express

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/join"
)

// wanted is a family of the configuration and the places of its sockets.
type wanted struct {
	number   uint8
	addr     netip.Addr
	tcp, udp **os.File // udp nil: not wanted
}

// open makes all sockets in one visit.
func (p *Path) open(t *join.Target, cfg Config) ([]wanted, error) {
	list := p.wanted(cfg)
	if len(list) == 0 {
		return nil, errNothing
	}
	err := p.visit(t, list)
	if errors.Is(err, unix.EAFNOSUPPORT) && list[len(list)-1].number == unix.AF_INET6 && len(list) > 1 {
		p.leaveOut(unix.AF_INET6, err)
		list = list[:1]
		err = p.visit(t, list)
	}
	return list, err
}

func (p *Path) wanted(cfg Config) []wanted {
	var list []wanted
	if cfg.V4.Is4() {
		list = append(list, wanted{unix.AF_INET, cfg.V4, &p.TCP4, &p.UDP4})
	}
	if cfg.V6.Is6() && !cfg.V6.Is4In6() {
		list = append(list, wanted{unix.AF_INET6, cfg.V6.WithZone(""), &p.TCP6, &p.UDP6})
	}
	for i := range list {
		if !cfg.UDP {
			list[i].udp = nil
		}
	}
	return list
}

// visit fetches the sockets. All are blocking at first, see prepare.
func (p *Path) visit(t *join.Target, list []wanted) error {
	sockets := []join.Socket{
		{What: "open an rtnetlink socket", Domain: unix.AF_NETLINK, Type: unix.SOCK_RAW, Protocol: unix.NETLINK_ROUTE},
		{What: "open an nfnetlink socket (nf_tables)", Domain: unix.AF_NETLINK, Type: unix.SOCK_RAW, Protocol: unix.NETLINK_NETFILTER},
		{What: "open a sock_diag socket", Domain: unix.AF_NETLINK, Type: unix.SOCK_RAW, Protocol: unix.NETLINK_SOCK_DIAG},
		{What: "open an rtnetlink socket for events", Domain: unix.AF_NETLINK, Type: unix.SOCK_RAW, Protocol: unix.NETLINK_ROUTE},
	}
	into := []**os.File{&p.route, &p.nft, &p.Diag, &p.links}
	for _, w := range list {
		sockets = append(sockets, join.Socket{What: "make a TCP socket", Domain: int(w.number), Type: unix.SOCK_STREAM})
		into = append(into, w.tcp)
		if w.udp != nil {
			sockets = append(sockets, join.Socket{What: "make a UDP socket", Domain: int(w.number), Type: unix.SOCK_DGRAM})
			into = append(into, w.udp)
		}
	}
	files, settings, err := t.Make(sockets, congestionSetting, lowPortsSetting)
	if err != nil {
		return err
	}
	for i, f := range files {
		*into[i] = f
	}
	p.congestion.file, p.lowPorts.file = settings[0], settings[1]
	return setNonblock(p.Diag)
}

// prepare sets a family's sockets up. UDP may fail alone.
func (w wanted) prepare(p *Path) (family, error) {
	f := family{number: w.number, addr: w.addr}
	var err error
	if f.tcp, err = prepare(*w.tcp, int(w.number), unix.SOCK_STREAM); err != nil || w.udp == nil {
		return f, err
	}
	if f.udp, err = prepare(*w.udp, int(w.number), unix.SOCK_DGRAM); err != nil {
		(*w.udp).Close()
		*w.udp, f.udp = nil, netip.AddrPort{}
		p.notice("UDP goes the universal way: %v", err)
	}
	return f, nil
}

func setNonblock(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var nerr error
	if err := rc.Control(func(fd uintptr) { nerr = unix.SetNonblock(int(fd), true) }); err != nil {
		return err
	}
	if nerr != nil {
		return fmt.Errorf("make %s nonblocking: %w", f.Name(), nerr)
	}
	return nil
}
