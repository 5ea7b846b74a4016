package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holdOptions are the words of the role @hold, KEYWORD=VALUE each.
type holdOptions struct {
	addr, src string // the server's and the client's address
	to        string // the server's port, the echo server's if empty
	n         int    // so many connections
	mark      int    // SO_MARK
	port      int    // the first client's port; the others count up
	opt       string // "tfo" or "mptcp"
	lax       bool   // connections that fail do not matter
	limit     time.Duration
}

func parseHold(args []string) (o holdOptions, err error) {
	o = holdOptions{n: 1, to: portEcho, limit: patience}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		var bad error
		switch key {
		case "addr":
			o.addr = value
		case "src":
			o.src = value
		case "to":
			o.to = value
		case "opt":
			o.opt = value
		case "lax":
			o.lax = true
		case "n":
			o.n, bad = strconv.Atoi(value)
		case "port":
			o.port, bad = strconv.Atoi(value)
		case "mark":
			var mark int64
			mark, bad = strconv.ParseInt(value, 0, 64)
			o.mark = int(mark)
		case "limit":
			o.limit, bad = time.ParseDuration(value)
		default:
			bad = fmt.Errorf("no such word: %s", a)
		}
		err = errors.Join(err, bad)
	}
	return o, err
}

// dial opens one connection.
func (o holdOptions) dial(n int) (net.Conn, error) {
	d := net.Dialer{Timeout: o.limit, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) { err = o.prepare(int(fd)) })
		return errors.Join(ctlErr, err)
	}}
	d.SetMultipathTCP(o.opt == "mptcp")
	if o.src != "" || o.port != 0 {
		local := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(o.port))
		if o.port != 0 {
			local = netip.AddrPortFrom(local.Addr(), uint16(o.port+n))
		}
		if strings.Contains(o.addr, ":") {
			local = netip.AddrPortFrom(netip.IPv6Unspecified(), local.Port())
		}
		if o.src != "" {
			local = netip.AddrPortFrom(netip.MustParseAddr(o.src), local.Port())
		}
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	return d.DialContext(context.Background(), "tcp", net.JoinHostPort(o.addr, o.to))
}

func (o holdOptions) prepare(fd int) (err error) {
	if o.mark != 0 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, o.mark))
	}
	if o.port != 0 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if o.opt == "tfo" {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1))
	}
	return err
}

// holdRole: WORD... — opens connections to an echo server one after the other, has
// each echo, prints "ready" with the time of the slowest connect, and at the end of its
// input has each echo again. Prints how many did.
func holdRole(args []string) error {
	o, err := parseHold(args)
	if err != nil {
		return err
	}
	all, slowest, err := holdAll(o, o.dial)
	fmt.Printf("ready %d connections, slowest connect %v %s\n", len(all), slowest.Round(time.Microsecond), holdError(err))
	if err != nil && !o.lax {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	good, err := echoAll(all, o.limit)
	fmt.Printf("%d of %d echo again %s\n", good, len(all), holdError(err))
	if err != nil && !o.lax {
		return err
	}
	return nil
}

// holdError shortens an error to its last line.
func holdError(err error) string {
	if err == nil {
		return ""
	}
	lines := strings.Split(err.Error(), "\n")
	return fmt.Sprintf("(%d errors, %s)", len(lines), lines[len(lines)-1])
}

// holdAll opens connections, a hundred at once if there are many.
func holdAll(o holdOptions, dial func(n int) (net.Conn, error)) (all []net.Conn, slowest time.Duration, err error) {
	workers := 1
	if o.n > 500 {
		workers = 32
	}
	var mu sync.Mutex
	var opening sync.WaitGroup
	for w := range workers {
		opening.Go(func() {
			for n := w; n < o.n; n += workers {
				start := time.Now()
				c, dialErr := dial(n)
				took := time.Since(start)
				if dialErr == nil {
					dialErr = echoOnce(c, fmt.Sprint("first ", n), o.limit)
				}
				mu.Lock()
				slowest = max(slowest, took)
				if dialErr == nil {
					all = append(all, c)
				}
				err = errors.Join(err, dialErr)
				mu.Unlock()
			}
		})
	}
	opening.Wait()
	return all, slowest, err
}

func echoAll(all []net.Conn, limit time.Duration) (good int, err error) {
	for n, c := range all {
		if echoErr := echoOnce(c, fmt.Sprint("again ", n), limit); echoErr != nil {
			err = errors.Join(err, echoErr)
			continue
		}
		good++
	}
	return good, err
}

// echoOnce sends a word and reads it back.
func echoOnce(c net.Conn, text string, limit time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(c, back); err != nil || string(back) != text {
		return fmt.Errorf("%s: %q came back, %w", text, back, err)
	}
	return nil
}
