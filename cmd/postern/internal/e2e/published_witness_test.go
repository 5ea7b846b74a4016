package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A witness is a server that says who its client is: one line with the address and
// port that it saw, then everything that the client sent. Its listeners are written
// NETWORK,ADDRESS in the words of package net: tcp4,0.0.0.0:80 or unix,/run/a.sock.

// witnessRole: LISTENER... — serves until its input ends.
func witnessRole(listeners []string) error {
	for _, text := range listeners {
		network, addr, _ := strings.Cut(text, ",")
		if err := testify(network, addr); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func testify(network, addr string) error {
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, addr)
		if err == nil {
			go testifyUDP(c)
		}
		return err
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go testifyTo(c)
		}
	}()
	return nil
}

func testifyTo(c net.Conn) {
	defer c.Close()
	fmt.Fprintln(c, c.RemoteAddr())
	// Without splice(2), whose pipe would take two descriptors more.
	_, _ = io.Copy(struct{ io.Writer }{c}, c)
}

func testifyUDP(c net.PacketConn) {
	_ = c.(*net.UDPConn).SetReadBuffer(4 << 20)
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(append([]byte(from.String()+"\n"), b[:n]...), from)
	}
}

// witness runs a witness inside the instance's network until the test ends.
func (i *inst) witness(t testing.TB, listeners ...string) (end func()) {
	t.Helper()
	inside := i.inside
	if inside == "" {
		inside = i.name
	}
	_, end = awaitReady(t, i.postern(context.Background(), append([]string{"exec", inside, "--", probe(), "@witness"}, listeners...)...))
	return end
}

// hostWitness runs a witness on the host, as the account.
func (a account) hostWitness(t testing.TB, listeners ...string) (pid int, end func()) {
	t.Helper()
	return awaitReady(t, a.command(context.Background(), probe(), append([]string{"@witness"}, listeners...)...))
}

// awaitReady starts a witness. Its end waits for the process.
func awaitReady(t testing.TB, cmd *exec.Cmd) (pid int, end func()) {
	t.Helper()
	said, end := untilReady(t, cmd)
	if said != "ready\n" {
		end()
		t.Fatalf("%s: %q before it was ready", strings.Join(cmd.Args, " "), said)
	}
	return cmd.Process.Pid, end
}

// untilReady starts a command and returns what it has said when it is ready. Its end
// waits for the process.
func untilReady(t testing.TB, cmd *exec.Cmd) (said string, end func()) {
	t.Helper()
	errs := &lockedBuffer{}
	cmd.Stderr = errs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	// RootlessKit's parent, for one, does not notice that its child has died early.
	tooLong := time.AfterFunc(patience, func() {
		for _, p := range family(cmd.Process.Pid) {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	})
	defer tooLong.Stop()
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		said += lines.Text() + "\n"
		if lines.Text() == "ready" {
			return said, end
		}
	}
	t.Fatalf("%s ended after %q: %s", cmd, said, errs)
	return "", nil
}

// client is where and how a test asks a witness.
type client struct {
	// ns is where the client is, nil for the host.
	ns *netns
	// local is the client's own address, if it has to be a certain one.
	local netip.AddrPort
	// limit is how long the answer is waited for; 0 is patience.
	limit time.Duration
}

// evidence is what a client and its witness say.
type evidence struct {
	// own is the client's address, seen what the witness saw; both without meaning
	// for a unix socket.
	own, seen netip.AddrPort
	// echo is what came back.
	echo string
}

// closed waits until a port takes no connection. Others than postern close theirs a moment
// after they have said so.
func (c client) closed(t testing.TB, network, addr string) {
	t.Helper()
	c.limit = time.Second
	err := eventually(goneLimit, func() error {
		conn, err := c.dial(network, addr)
		if err == nil {
			conn.Close()
		}
		return failIf(err == nil, "%s %s is open, and should be closed", network, addr)
	})
	if err != nil {
		t.Error(err)
	}
}

// word is what clients say.
const word = "who am I?"

// dial connects.
func (c client) dial(network, addr string) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: c.patience(), Control: reuseAddr}
	if c.local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(c.local)
		if strings.HasPrefix(network, "udp") {
			d.LocalAddr = net.UDPAddrFromAddrPort(c.local)
		}
	}
	connect := func() error {
		conn, err = d.Dial(network, addr)
		return err
	}
	if c.ns != nil {
		return conn, c.ns.do(connect)
	}
	return conn, connect()
}

func (c client) patience() time.Duration {
	if c.limit == 0 {
		return patience
	}
	return c.limit
}

// reuseAddr lets several connections to different places have one local port.
func reuseAddr(_, _ string, c syscall.RawConn) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(ctlErr, err)
}

// ask asks a witness.
func (c client) ask(network, addr string) (a evidence, err error) {
	conn, err := c.dial(network, addr)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if strings.HasPrefix(network, "udp") {
		return c.askUDP(conn)
	}
	_ = conn.SetDeadline(time.Now().Add(c.patience()))
	if _, err := io.WriteString(conn, word); err != nil {
		return a, err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return a, err
	}
	said, err := io.ReadAll(conn)
	if err != nil {
		return a, err
	}
	return testimony(conn, said)
}

// askUDP repeats the question: a datagram may be lost.
func (c client) askUDP(conn net.Conn) (evidence, error) {
	b := make([]byte, 64<<10)
	for end := time.Now().Add(c.patience()); ; {
		if _, err := io.WriteString(conn, word); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return evidence{}, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := conn.Read(b)
		switch {
		case err == nil:
			return testimony(conn, b[:n])
		case time.Now().After(end), !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.ECONNREFUSED):
			return evidence{}, err
		}
	}
}

func testimony(conn net.Conn, said []byte) (a evidence, err error) {
	line, rest, ok := strings.Cut(string(said), "\n")
	if !ok || !strings.HasSuffix(rest, word) {
		return a, fmt.Errorf("the answer is %q", said)
	}
	a.echo = rest
	a.own, _ = netip.ParseAddrPort(conn.LocalAddr().String())
	a.seen, _ = netip.ParseAddrPort(line)
	return a, nil
}

// mustAsk is ask where there has to be an answer.
func (c client) mustAsk(t testing.TB, network, addr string) evidence {
	t.Helper()
	a, err := c.ask(network, addr)
	if err != nil {
		t.Fatalf("ask %s %s: %v", network, addr, err)
	}
	return a
}

// askRole: NETWORK ADDRESS — asks a witness and prints what it saw.
func askRole(args []string) error {
	a, err := client{}.ask(args[0], args[1])
	if err == nil {
		fmt.Println("seen", a.seen)
	}
	return err
}
