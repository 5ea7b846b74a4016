package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/dns"
)

// exchange is the Exchange over sockets of the process's own network namespace.
func exchange(ctx context.Context, network string, server netip.AddrPort, query []byte) ([]byte, error) {
	ask := exchangeUDP
	if network == "tcp" {
		ask = exchangeTCP
	}
	response, err := ask(ctx, server, query)
	if err != nil {
		return nil, fmt.Errorf("ask name server %s over %s: %w", server, network, err)
	}
	return response, nil
}

// exchangeUDP uses a fresh socket, and with it a fresh random source port. The
// socket is connected: other senders are not heard, and a closed port is an
// error at once (ip(7)).
func exchangeUDP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialUDP(ctx, "udp", netip.AddrPort{}, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer interruptWith(ctx, conn)()
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		response, err := readMatch(raw, query)
		if response != nil || err != nil {
			return response, err
		}
	}
}

// exchangeTCP uses a fresh connection.
func exchangeTCP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer interruptWith(ctx, conn)()
	if err := dns.WriteMessage(conn, query); err != nil {
		return nil, err
	}
	for {
		response, err := dns.ReadMessage(conn, dns.MaxMessage)
		if err != nil || dns.Matches(query, response) {
			return response, err
		}
	}
}

// interruptWith lets reads and writes on conn fail when ctx ends. The caller
// calls stop when done.
func interruptWith(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// datagrams holds buffers for one datagram of any size. A try borrows one only
// while a datagram is there to be read, so that hundreds of silent servers cost
// no memory.
var datagrams = sync.Pool{New: func() any { return new([dns.MaxMessage]byte) }}

// readMatch waits for one datagram and returns a copy of it if it matches the
// query, otherwise nil. It handles a single datagram a call because the deadline
// is looked at only between calls: a flood of forged answers must not outlast it.
func readMatch(raw syscall.RawConn, query []byte) (response []byte, err error) {
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		buf := datagrams.Get().(*[dns.MaxMessage]byte)
		defer datagrams.Put(buf)
		n, err := unix.Read(int(fd), buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EINTR):
		case err != nil:
			failed = os.NewSyscallError("read", err)
		case dns.Matches(query, buf[:n]):
			response = bytes.Clone(buf[:n])
		}
		return true
	})
	return response, errors.Join(err, failed)
}
