package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelTime is how long one try with a kernel socket may take of which nothing has to
// come.
const kernelTime = 2 * time.Second

// kernelRole tries a list with kernel sockets, all at once. The argument names the
// interface to bind to.
func kernelRole(args []string) error {
	var list []attempt
	if err := json.NewDecoder(os.Stdin).Decode(&list); err != nil {
		return err
	}
	// Without this the kernel refuses to send to 127.0.0.0/8 on a network.
	if err := sysctl("net/ipv4/conf/"+args[0]+"/route_localnet", "1"); err != nil {
		return err
	}
	var all sync.WaitGroup
	for i := range list {
		all.Go(func() {
			a := &list[i]
			result, err := tryKernel(*a, args[0])
			if a.Result = result; err != nil {
				a.Result = errorName(err)
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(list)
}

// tryKernel connects or sends, and reads what comes back.
func tryKernel(a attempt, ifname string) (result string, err error) {
	if a.Dst.Addr().IsLinkLocalUnicast() && a.Dst.Addr().Is6() || a.Dst.Addr().IsMulticast() && a.Dst.Addr().Is6() {
		a.Dst = netip.AddrPortFrom(a.Dst.Addr().WithZone(ifname), a.Dst.Port())
	}
	limit := kernelTime
	if a.Want != "" {
		limit = patience
	}
	d := net.Dialer{Timeout: limit, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			if a.Bind {
				err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, ifname)
			}
			if a.Mark != 0 {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, a.Mark))
			}
		})
		return errors.Join(ctlErr, err)
	}}
	network, addr := a.Proto, a.Dst.String()
	if a.Proto == "icmp" {
		network, addr = "ip4:icmp", a.Dst.Addr().String()
		if a.Dst.Addr().Is6() {
			network = "ip6:ipv6-icmp"
		}
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	switch a.Proto {
	case "udp":
		if _, err := io.WriteString(c, "who is there?"); err != nil {
			return "", err
		}
	case "icmp":
		return tryEcho(c, a.Dst.Addr().Is6())
	}
	n, err := c.Read(make([]byte, 100))
	switch {
	case n > 0:
		return "banner", nil
	case a.Proto == "tcp" && errors.Is(err, os.ErrDeadlineExceeded):
		return "handshake", nil
	}
	return "", err
}

// tryEcho sends an echo request on a raw socket and waits for its reply. The
// container's own loopback may answer for its own addresses: those replies do not
// come over the interface, so only a source that is not ours counts.
func tryEcho(c net.Conn, six bool) (string, error) {
	b := []byte{8, 0, 0, 0, 0x77, 0x77, 0, 1}
	reply := byte(0)
	if six {
		b[0], reply = 128, 129
	} else {
		sum := ^fold(add(0, b))
		b[2], b[3] = byte(sum>>8), byte(sum)
	}
	if _, err := c.Write(b); err != nil {
		return "", err
	}
	in := make([]byte, 1500)
	for {
		n, err := c.Read(in)
		if err != nil {
			return "", err
		}
		p := in[:n]
		if !six && n >= 20 && p[0]>>4 == 4 {
			p = p[p[0]&15*4:]
		}
		if len(p) >= 8 && p[0] == reply && p[4] == 0x77 && p[5] == 0x77 {
			return "banner", nil
		}
	}
}
