package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// truth is a line of the truth table: what happens to a connection, and what its ends
// see of that. Without a server it is about the connect alone.
type truth struct {
	name string
	// dead are the addresses that cannot be connected to, by family.
	dead [2]string
	// server and client are the two ends; what they return is what they saw.
	server, client func(c *net.TCPConn) string
	// options prepares the client's socket.
	options func(fd int)
	// settle makes what both saw comparable where it depends on sizes of buffers.
	settle func(saw string) string
	// differs says why the container may see something else than the host, and what,
	// by family; both ends separated by a bar.
	differs map[string][2]string
}

// lateBytes is what follows an end of the other direction.
const lateBytes = 1 << 20

// midway is what has come when an end stops taking: less than any window is at first.
const midway = 16 << 10

// Prefixes that truthRoutes makes unreachable, by family.
var (
	unreachableHost = [2]string{"192.0.2.1", "2001:db8:dead::1"}    // says the remote
	prohibited      = [2]string{"192.0.2.65", "2001:db8:dead:1::1"} // the same
	prohibitedHere  = [2]string{"192.0.2.129", "2001:db8:deaf::1"}  // by the host
	swallowed       = [2]string{blackhole4, "2001:db8:b1ac::1"}
	noRoute         = [2]string{noRoute4, noRoute6}
	closedPort      = [2]string{remote4, remote6}
)

// idleTime is how long a connection is idle in the table.
func idleTime() time.Duration {
	if os.Getenv("POSTERN_E2E_LARGE") != "" {
		return time.Minute
	}
	return 2 * time.Second
}

// truths is the table. Its order gives the servers their ports.
var truths = []truth{
	{name: "refused", dead: closedPort},
	{name: "no route on the host", dead: noRoute},
	{name: "unreachable, says a router", dead: unreachableHost},
	{name: "prohibited, says a router", dead: prohibited},
	{name: "prohibited by the host", dead: prohibitedHere, differs: map[string][2]string{
		// The container hears it from its gateway, as an ICMP message; for IPv4 the
		// kernel makes EHOSTUNREACH of that (icmp_err_convert), on the host it says EACCES.
		"the host's own rule is an ICMP message inside": {"EHOSTUNREACH", "EACCES"},
	}},
	{name: "timed out after two SYNs", dead: swallowed, options: func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1) }},
	{name: "timed out by TCP_USER_TIMEOUT", dead: swallowed, options: func(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1500) }},
	{name: "addresses", server: func(c *net.TCPConn) string { return readToEnd(c) }, client: func(c *net.TCPConn) string {
		local, remote := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
		own := local.IP.String() == "10.0.2.100" || local.IP.String() == "fd00::100" || local.IP.String() == host4 || local.IP.String() == host6
		return fmt.Sprintf("from its own address %t, to %v", own, remote.IP)
	}},
	{name: "server speaks first", server: func(c *net.TCPConn) string { say(c, "220 hello"); return readToEnd(c) },
		client: func(c *net.TCPConn) string { return hear(c, 9) }},
	{name: "client ends its half, data after it", server: func(c *net.TCPConn) string {
		got := readToEnd(c)
		_, err := io.CopyN(c, stream(), lateBytes)
		return got + ", then sends " + outcomeOf(err)
	}, client: func(c *net.TCPConn) string { say(c, "x"); _ = c.CloseWrite(); return readToEnd(c) }},
	{name: "server ends its half, data after it", server: func(c *net.TCPConn) string { say(c, "x"); _ = c.CloseWrite(); return readToEnd(c) },
		client: func(c *net.TCPConn) string {
			got := readToEnd(c)
			_, err := io.CopyN(c, stream(), lateBytes)
			return got + ", then sends " + outcomeOf(err)
		}},
	{name: "both end at once", server: func(c *net.TCPConn) string { hear(c, 2); say(c, "yz"); _ = c.CloseWrite(); return readToEnd(c) },
		client: func(c *net.TCPConn) string { say(c, "go"); _ = c.CloseWrite(); return readToEnd(c) }},
	{name: "server closes with unread data", server: func(c *net.TCPConn) string { unread(c, 100); return "" },
		client: func(c *net.TCPConn) string { say(c, strings.Repeat("x", 100)); return readToEnd(c) }},
	{name: "server resets", server: func(c *net.TCPConn) string { say(c, "ready"); hear(c, 2); _ = c.SetLinger(0); return "" },
		client: func(c *net.TCPConn) string { hear(c, 5); say(c, "go"); return readToEnd(c) + ", then " + writeOn(c) }},
	{name: "server resets after the client's end", server: func(c *net.TCPConn) string { readToEnd(c); say(c, "ready"); hearGo(c); _ = c.SetLinger(0); return "" },
		client: func(c *net.TCPConn) string { say(c, "go"); _ = c.CloseWrite(); hear(c, 5); return readToEnd(c) }},
	{name: "server closes, client writes on", server: func(*net.TCPConn) string { return "" },
		client: func(c *net.TCPConn) string { return readToEnd(c) + ", then " + writeOn(c) }},
	{name: "server stops taking in the middle", server: func(c *net.TCPConn) string { unread(c, midway); return "" },
		client: func(c *net.TCPConn) string { return writeOn(c) }},
	// What hear saw counts too: a reset is reported once, and an end of stream after it.
	{name: "client resets", server: func(c *net.TCPConn) string { got := hear(c, 2); say(c, "ok"); return got + "; " + readToEnd(c) },
		client: func(c *net.TCPConn) string {
			say(c, "go")
			got := hear(c, 2) // so that has arrived: a reset may destroy it
			_ = c.SetLinger(0)
			return got
		}},
	{name: "client resets after the server's end", server: func(c *net.TCPConn) string { _ = c.CloseWrite(); return readToEnd(c) },
		client: func(c *net.TCPConn) string {
			got := readToEnd(c)
			say(c, "go")
			time.Sleep(time.Second) // until that has arrived: a reset may destroy it
			_ = c.SetLinger(0)
			return got
		}},
	{name: "client closes with unread data", server: func(c *net.TCPConn) string { say(c, strings.Repeat("x", 100)); return readToEnd(c) },
		client: func(c *net.TCPConn) string { unread(c, 100); return "" }},
	{name: "client closes in the middle", server: func(c *net.TCPConn) string { return writeOn(c) },
		client: func(c *net.TCPConn) string { unread(c, midway); return "" }},
	{name: "client is killed, idle", server: func(c *net.TCPConn) string { hear(c, 2); return readToEnd(c) }, client: vanish("idle")},
	{name: "client is killed with unread data", server: func(c *net.TCPConn) string {
		hear(c, 2)
		say(c, strings.Repeat("x", 100))
		return readToEnd(c)
	}, client: vanish("unread")},
	{name: "client is killed with unsent data", server: func(c *net.TCPConn) string {
		time.Sleep(500 * time.Millisecond)
		return readToEnd(c)
	}, client: vanish("unsent"), settle: func(saw string) string {
		var wrote, got int
		if n, _ := fmt.Sscanf(saw, "wrote %d bytes, signal: killed|%d bytes, EOF", &wrote, &got); n == 2 && wrote == got && got > 10000 {
			return "signal: killed|all that was written, EOF"
		}
		return saw
	}},
	{name: "idle", server: func(c *net.TCPConn) string { _, err := io.Copy(c, c); return outcomeOf(err) }, client: func(c *net.TCPConn) string {
		time.Sleep(idleTime())
		say(c, "still there?")
		return hear(c, 12)
	}},
	{name: "urgent byte out", server: func(c *net.TCPConn) string { return readToEnd(c) }, client: func(c *net.TCPConn) string { return urgent(c) },
		differs: map[string][2]string{"urgent bytes stay in the stream, in their place": {"ok|ab!cd, EOF", "ok|ab!cd, EOF"}}},
	{name: "urgent byte in", server: func(c *net.TCPConn) string { return urgent(c) }, client: func(c *net.TCPConn) string { return readToEnd(c) },
		differs: map[string][2]string{"urgent bytes stay in the stream, in their place": {"ab!cd, EOF|ok", "ab!cd, EOF|ok"}}},
}

// say sends a text, hear reads n bytes. Their errors show in what follows.
func say(c net.Conn, text string) { _, _ = io.WriteString(c, text) }

func hear(c net.Conn, n int) string {
	b := make([]byte, n)
	got, err := io.ReadFull(c, b)
	return string(b[:got]) + outcomeOf(err)
}

// hearGo waits a moment: nothing more can come from a client that ended its half.
func hearGo(net.Conn) { time.Sleep(100 * time.Millisecond) }

// readToEnd returns what came, or how much, and how it ended.
func readToEnd(c net.Conn) string {
	b, err := io.ReadAll(c)
	text := string(b)
	if len(b) > 20 {
		text = fmt.Sprint(len(b), " bytes")
		if bytes.Count(b, b[:1]) != len(b) && sum(bytes.NewReader(b)) != sumOf(int64(len(b))) {
			text += " (wrong ones)"
		}
	}
	if err == nil {
		return strings.TrimPrefix(text+", EOF", ", ")
	}
	return strings.TrimPrefix(text+", "+errorName(err), ", ")
}

func outcomeOf(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "EOF"
	}
	return errorName(err)
}

// writeOn writes until that fails. Whether a write meets the reset itself or the error
// that it left is a matter of moments, so both are "reset".
func writeOn(c net.Conn) string {
	b := make([]byte, 4096)
	for {
		if _, err := c.Write(b); err != nil {
			name := errorName(err)
			if name == "ECONNRESET" || name == "EPIPE" {
				return "writes until reset"
			}
			return name
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// unread waits until n bytes are there and leaves them: closing resets then.
func unread(c *net.TCPConn, n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = eventually(patience, func() (err error) {
		var queued int
		ctlErr := raw.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		return errors.Join(ctlErr, err, failIf(queued < n, "%d bytes", queued))
	})
}

// urgent sends a byte out of band amid others.
func urgent(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	say(c, "ab")
	time.Sleep(50 * time.Millisecond)
	ctlErr := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
	time.Sleep(50 * time.Millisecond)
	say(c, "cd")
	if err := errors.Join(ctlErr, err, c.CloseWrite()); err != nil {
		return err.Error()
	}
	return "ok"
}

// vanish has another process own the connection and be killed.
func vanish(how string) func(c *net.TCPConn) string {
	return func(c *net.TCPConn) string {
		f, err := c.File()
		if err != nil {
			return err.Error()
		}
		c.Close()
		cmd := exec.Command("/proc/self/exe", "@vanish", how)
		var said bytes.Buffer
		cmd.Stdout = &said
		cmd.ExtraFiles = []*os.File{f}
		err = cmd.Start()
		f.Close()
		if err != nil {
			return err.Error()
		}
		_ = cmd.Wait()
		return strings.TrimSpace(said.String() + " " + cmd.ProcessState.String())
	}
}

// vanishRole: HOW — does something with descriptor 3 and kills itself.
func vanishRole(args []string) error {
	const fd = 3
	die := func() error { return unix.Kill(os.Getpid(), unix.SIGKILL) }
	if args[0] == "unsent" {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		block := make([]byte, 64<<10)
		total := 0
		for n, err := 0, error(nil); err == nil; total += max(n, 0) {
			n, err = unix.Write(fd, block)
		}
		fmt.Printf("wrote %d bytes,", total)
		return die()
	}
	if _, err := unix.Write(fd, []byte("go")); err != nil {
		return err
	}
	if args[0] == "unread" {
		err := eventually(patience, func() error {
			queued, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
			return errors.Join(err, failIf(queued < 100, "%d bytes", queued))
		})
		if err != nil {
			return err
		}
	}
	time.Sleep(100 * time.Millisecond)
	return die()
}
